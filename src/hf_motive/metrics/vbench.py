"""Where the six dimensions of VBench come from."""

URL = "https://github.com/Vchitect/VBench"

CITATION = """
@inproceedings{huang2024vbench,
    title     = {{VBench}: Comprehensive Benchmark Suite for Video Generative Models},
    author    = {Huang, Ziqi and He, Yinan and Yu, Jiashuo and Zhang, Fan and Si, Chenyang and Jiang, Yuming and
                 Zhang, Yuanhan and Wu, Tianxing and Jin, Qingyang and Chanpaisit, Nattapol and Wang, Yaohui and
                 Chen, Xinyuan and Wang, Limin and Lin, Dahua and Qiao, Yu and Liu, Ziwei},
    booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
    year      = {2024}
}
"""
