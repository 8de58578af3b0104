"""What VBench itself gives, to compare `hf_motive.metrics` with: the original package, run once, and its figures.

- `clips.py`: the clips, drawn with whole numbers, so that they are the same everywhere.
- `networks.py`: small networks that both sides build from the same numbers.
- `originals.py`: VBench, its transforms, DINO and CLIP, out of the files that they are published in.
- `record.py`: runs them; `recorded.json` is what came out. How to repeat it stands there.

tests/test_vbench_oracle.py compares. What is original in a record: VBench's own functions for the six dimensions, from
its list of videos to its mean; torchvision's transforms; the networks' code of DINO and CLIP, with few and random
weights. What is not: decoding (both sides get the same frames), and RAFT, AMT and MUSIQ, which both sides have as the
same small function; the original RAFT is compared with torchvision's by itself (`raft.py`).
"""
