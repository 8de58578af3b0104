"""MotiveAttributor: the few lines a user writes. Clips to features, features and queries to influence.

The path of one clip, top to bottom (arXiv 2601.08828):

    video  -> pixels            video.load_clip         one length, rate and size for all
    pixels -> mask              motion                  how much moves where, on the latent grid
    pixels -> latents           PipelineStep.encode
    latents, caption -> loss    PipelineStep.loss       one fixed timestep and noise, weighted by the mask
    loss   -> feature           gradients, projection   a unit vector of D' numbers
    features, queries -> rank   influence               cosine, votes, rank

docs/paper_index.md has the equations beside these functions.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from . import motion
from .ahead import ahead, idle_threads
from .config import PRESETS, AttributionConfig
from .corpus import RowId, as_files, clip_name, undecoded
from .encodings import COLUMNS, ClipEncoder, Encoding, add_encodings, check_encoded, checked_caption, encoding_of
from .errors import ClipError
from .factored import Factored
from .gradients import GradientProjector, clip_feature, select_parameters
from .index import GradientIndex
from .motion.weight import one_at_a_time
from .motion_columns import stored_mask
from .pipelines import PipelineStep, digest
from .processes import processes
from .projection import Fastfood
from .sharding import is_shared_out
from .transforms import Rivals, add_influence, check_groups, influence_columns, is_reserved
from .video import load_clip

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    from .explaining import Explanation

Result = TypeVar("Result")


class ClipFeature(NamedTuple):
    """What one clip leaves behind.

    Attributes:
        vector: (K·D',) float32, unit norm: the projected motion-weighted gradients of K (timestep, noise) draws, side
            by side.
        draws: (K, D') float32, unit norm each: the same, apart.
        facts: Numbers beside it: `mean_motion` in pixels per frame (None where masks come from a column and it does
            not), `loss`, `coverage` in [0, 1].
    """

    vector: Tensor
    draws: Tensor
    facts: dict[str, float | None]


class _Prepared(NamedTuple):
    """A clip that only the pipeline has still to see.

    Attributes:
        caption: Checked.
        row: The row it comes from, with its `pixels` where they are needed.
        weight: (T, h, w) in [0, 1].
        mean_motion: Pixels per frame, or NaN.
        encoding: What `encode` has kept of it.
    """

    caption: str
    row: dict[str, Any]
    weight: Tensor
    mean_motion: float
    encoding: Encoding | None


class _Encoded(NamedTuple):
    """A clip that only the denoiser has still to see.

    Attributes:
        clip: What it was.
        latents: (C, T, h, w).
        answers: Of the frozen parts; None: they are asked at the step itself.
    """

    clip: _Prepared
    latents: Tensor
    answers: Mapping[str, Any] | None


class MotiveAttributor:
    """Which clips teach this pipeline's denoiser to move like the queries do?

    Args:
        pipe: Any diffusers video pipeline, loaded and on its device. It is left as it was found.
        config: The settings; None for the defaults. `preset="paper"` among `settings`: the paper's, to the letter.
        estimator: A `MotionEstimator` in place of the weights-free DIS that `config` describes.
        conditioning: `example -> pipeline arguments`, for pipelines that need more than a caption; `example` is the
            dataset's row with the clip's `pixels`, (F, 3, H, W) in [-1, 1], added.
        call_kwargs: Further arguments of the pipeline's call, the same for every clip.
        example: A row of the dataset, for a `conditioning` that reads more of it than `pixels`: it is asked for once
            when the pipeline is learnt, before there is a clip.
        video_column: Column of the video: a `datasets.Video`, a path, bytes or frames.
        caption_column: Column of the caption.
        id_column: Column of a stable id. None: the id is the digest of the file's bytes and the caption.
        mask_column: Column of masks, such as `add_motion` writes, in place of computing them: clips and queries must
            both have it. Such an id knows the mask as well.
        encoded_column: Column of encodings, as `encode` adds it, in place of the clips: queries must have it, too.
            VAE and text encoder are not asked, and no clip is decoded that the pipeline is not conditioned on.
        workers: Threads that read, decode and find the motion of the next clips while the device is at one; each holds
            a clip. None: the process's idle cores, at most four; on a CPU those that `torch.set_num_threads` leaves.
        **settings: Single settings in place of `config`'s, by their names in `AttributionConfig`.

    Raises:
        PipelineError: the pipeline cannot be used this way; the message says what did not hold.

    Example:
        >>> attributor = MotiveAttributor(pipe, num_frames=49, height=480, width=720, fps=8)
        >>> index = attributor.index(clips, "runs/index")
        >>> clips = attributor.influence(clips, index, queries)
        >>> best = clips.filter(lambda rank: rank < 100, input_columns="influence_rank")
    """

    def __init__(
        self,
        pipe: Any,
        config: AttributionConfig | None = None,
        *,
        estimator: motion.MotionEstimator | None = None,
        conditioning: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None,
        call_kwargs: Mapping[str, Any] | None = None,
        example: Mapping[str, Any] | None = None,
        video_column: str = "video",
        caption_column: str = "caption",
        id_column: str | None = None,
        mask_column: str | None = None,
        encoded_column: str | None = None,
        workers: int | None = None,
        **settings: Any,
    ):
        base = config.to_dict() if config is not None else {}
        if "preset" in settings:  # what it is about is taken from it, and not from the config
            base = {name: value for name, value in base.items() if name not in PRESETS["paper"]}
        self.config = AttributionConfig.from_dict({**base, **settings})
        self.video_column, self.caption_column, self.id_column = video_column, caption_column, id_column
        self.mask_column, self.encoded_column = mask_column, encoded_column
        self.workers = workers
        self._reads_rows = conditioning is not None
        standard = self.config.standard
        if example is not None and "pixels" not in example:
            example = {**example, "pixels": load_clip(example[video_column], standard)}
        self.step = PipelineStep(
            pipe,
            num_frames=standard.num_frames,
            height=standard.height,
            width=standard.width,
            conditioning=conditioning,
            call_kwargs=call_kwargs,
            example=example,
        )
        self.estimator = estimator or motion.DISFlow(
            preset=self.config.flow_preset, reference=self.config.flow_reference
        )
        law = Factored if self.config.projection == "factored" else Fastfood
        self.projection = law(dim=self.config.projection_dim, seed=self.config.seed)
        self.parameters = select_parameters(self.step.denoisers, self.config.parameters)
        self._noises = [self.step.noise(self.config.seed + draw) for draw in range(self.config.noise_draws)]
        self._settings: dict[str, Any] | None = None
        self._witness: dict[str, Any] = {}
        self._model: str | None = None
        self._encoders: dict[bool, ClipEncoder] = {}
        self._weighing = one_at_a_time(self._weigh)

    # -- one clip ------------------------------------------------------------------------------------------------

    def motion_weight(self, pixels: Tensor, example: Mapping[str, Any] | None = None) -> tuple[Tensor, float]:
        """The weight of the loss on the latent grid, and how much the clip moves.

        Args:
            pixels: (F, 3, H, W) in [-1, 1]; not looked at where a `mask_column` is set.
            example: The row, which has the mask already where a `mask_column` is set.

        Returns:
            (T, h, w) in [0, 1] and the mean flow magnitude in pixels per frame.

        Raises:
            ClipError: `static`, when nothing moves: its mask would be 0/0.
        """
        if self.mask_column is not None:
            return stored_mask(example or {}, self.mask_column, self.step.latent_shape[1:])
        return self._weigh(pixels)

    @property
    def _weigh(self) -> motion.MotionWeight:
        config = self.config
        grid = self.step.latent_shape[1:]
        reference, camera, confidence = config.flow_reference, config.compensate_camera, config.flow_confidence
        return motion.MotionWeight(self.estimator, grid, reference, camera, confidence)

    def feature(self, video: Any, caption: str | None, example: Mapping[str, Any] | None = None) -> ClipFeature:
        """One clip and its caption to one feature.

        Args:
            video: Whatever `load_clip` reads.
            caption: The clip's own caption.
            example: The row it comes from, for `conditioning`.

        Raises:
            ClipError: the clip cannot be scored; `status` and `reason` say why.
        """
        return self._feature(self._encode(self._prepare(video, caption, example)))

    def _prepare(
        self, video: Any, caption: str | None, example: Mapping[str, Any] | None, start: float = 0.0
    ) -> _Prepared:
        """What needs no device. Called from several threads at once. `start`: of the standard clip, in seconds."""
        caption = checked_caption(caption, self.config.require_caption)
        given = encoding_of(example or {}, self._encoder(), self.encoded_column) if self.encoded_column else None
        has_mask = given is not None and self.mask_column is None and given.mask_digest == self._encoder().mask_digest
        row = dict(example or {})
        if given is None or self.step.reads_rows or not (has_mask or self.mask_column):
            row["pixels"] = load_clip(video, self.config.standard, start=start)
        # A static clip is refused without the mask too, so that both ways of scoring rank the same rows.
        if given is not None and has_mask:
            weight, mean_motion = given.mask()
        else:
            with self._weighing:
                weight, mean_motion = self.motion_weight(row.get("pixels"), example)
        return _Prepared(caption, row, weight, mean_motion, given)

    def _encode(self, clip: _Prepared) -> _Encoded:
        """What needs the device, and of the denoiser nothing."""
        step, config, given = self.step, self.config, clip.encoding
        latents = step.encode(clip.row["pixels"]) if given is None else given.latents
        answers = None if given is None else given.answers
        if answers is None and (config.draws > 1 or self._sharded):
            answers = step.answers(clip.caption, clip.row)  # of the frozen parts: the same for every draw
        return _Encoded(clip, latents, answers)

    def _feature(self, encoded: _Encoded) -> ClipFeature:
        """The denoiser's part."""
        step, config, (clip, latents, answers) = self.step, self.config, encoded

        def loss(timestep: float, noise: Tensor) -> Tensor:
            weight = clip.weight if config.motion_weighted else None
            return step.loss(
                latents,
                clip.caption,
                noise=noise,
                timestep=timestep,
                weight=weight,
                example=clip.row,
                answers=answers,
                center=config.center_error,
            ).loss

        draws = [partial(loss, timestep, noise) for timestep in config.timesteps for noise in self._noises]
        with GradientProjector(self.parameters, self.projection, step.denoisers.values()) as projector:
            result = clip_feature(projector, draws)
        known_motion = None if math.isnan(clip.mean_motion) else clip.mean_motion
        return ClipFeature(
            result.vector,
            result.draws,
            {"mean_motion": known_motion, "loss": float(result.loss), "coverage": float(result.coverage)},
        )

    # -- many clips ----------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """What a feature depends on, as JSON values. Features of other settings refuse to be compared."""
        parts = self.step.pipeline.components.items()
        witness = {name: digest.witness(part) for name, part in parts if isinstance(part, torch.nn.Module)}
        if self._settings is None or self._witness != witness:
            self._witness, self._model = witness, None
            config = self.config.to_dict()
            for name in ("preset", "flow_preset", "flow_reference", "projection", "projection_dim"):
                config.pop(name)  # said, with their own names, by what they set
            if not self.config.center_error:
                config.pop("center_error")  # it came later: indexes from before it are read on
            self._settings = {
                **config,
                "estimator": self.estimator.name if self.mask_column is None else f"column {self.mask_column}",
                "projection": self.projection.settings(),
                "pipeline": self.step.settings(),
            }
        return self._settings

    def model_of(self, index: GradientIndex) -> str | None:
        """Digest of the model that an index was computed with, if it is this pipeline's; else it is not known here."""
        theirs = index.settings["features"].get("pipeline", {}).get("weights", {})
        ours = self.settings()["pipeline"]["weights"]
        if any(theirs.get(name) != ours[name] for name in self.step.denoisers):
            return None
        if self._model is None:
            self._model = digest.model(self.step.denoisers)
        return self._model

    @property
    def row_id(self) -> RowId:
        """A row of a dataset to its stable id."""
        return RowId(self.video_column, self.caption_column, self.id_column, self.mask_column)

    def ids(self, dataset: Dataset | IterableDataset) -> list[str]:
        """One stable id a row: the `id_column`, or the digest of the file's bytes (which are read) and the caption."""
        return [identity for identity, _ in self._ids_and_names(dataset)]

    def _ids_and_names(self, dataset: Any) -> list[tuple[str, str]]:
        """Of each row the id and the clip's name, which tells copies of one clip apart."""
        from accelerate.utils import broadcast_object_list, gather_object
        from datasets import Dataset

        def of(example: Mapping[str, Any]) -> tuple[str, str]:
            return row_id(example), clip_name(example[self.video_column], "")

        state, row_id = processes(), self.row_id
        dataset = self._readable(dataset, rows=False)
        if not isinstance(dataset, Dataset):  # a stream has one order, and one process that reads it
            found = [[of(example) for example in dataset] if state.is_main_process else None]
            return broadcast_object_list(found)[0]
        rows = range(state.process_index, len(dataset), state.num_processes)
        mine = [(row, of(dataset[row])) for row in rows]
        return [found for _, found in sorted(gather_object(mine))]

    def _readable(self, dataset: Any, name: str = "the dataset", *, rows: bool = True) -> Any:
        """The dataset, checked, with the columns that are read and no others: they might have to be decoded.

        Args:
            rows: Whether `conditioning` is to see the rows: it may read any column.
        """
        given = dataset
        dataset = undecoded(
            dataset, self.video_column, self.caption_column, self.id_column, self.mask_column, name=name
        )
        if self.encoded_column is not None and rows:
            check_encoded(dataset, self._encoder(), self.encoded_column, name)
        if rows and self._reads_rows:
            for column, feature in (given.features or {}).items():  # as it would see them of a dataset on disk
                if column != self.video_column and dataset.features[column] != feature:
                    dataset = dataset.cast_column(column, feature)
            return dataset
        needed = {self.video_column, self.caption_column, self.id_column, self.mask_column}
        if self.encoded_column is not None and rows:
            needed |= {self.encoded_column, *COLUMNS}
        if self.mask_column is not None:
            needed |= {"motion_mean", "motion_status", "motion_reason"}
        return dataset.select_columns([column for column in dataset.features if column in needed])

    def _encoder(self, masks: bool = True) -> ClipEncoder:
        if masks not in self._encoders:
            self._encoders[masks] = ClipEncoder(
                self.step,
                self.config.standard,
                weigh=self._weigh if masks else None,
                video_column=self.video_column,
                caption_column=self.caption_column,
                require_caption=self.config.require_caption,
            )
        return self._encoders[masks]

    def encode(
        self, dataset: Dataset, *, masks: bool = True, cache_dir: str | Path | None = None, progress: bool = True
    ) -> Dataset:
        """Put latents, masks and text embeddings beside the clips: computed once, for scoring and training alike.

        `MotiveAttributor(..., encoded_column="encoded")` scores by them, and `MotiveTrainer` trains on them.

        Args:
            dataset: Rows with a video and a caption, no stream.
            masks: Keep the motion masks as well, unless they are in a `mask_column` anyway.
            cache_dir, progress: As `add_encodings` takes them.

        Returns:
            `dataset` with the columns of `add_encodings`.
        """
        encoder = self._encoder(masks and self.mask_column is None)
        return add_encodings(dataset, encoder, cache_dir=cache_dir, workers=self.workers, progress=progress)

    def without_mask(self) -> MotiveAttributor:
        """This attributor without the mask: the whole clip's gradient, everything else being the same."""
        other = copy.copy(self)
        other.config = replace(self.config, motion_weighted=False)
        other._settings = None
        return other

    def index(
        self,
        dataset: Dataset | IterableDataset,
        path: str | Path,
        *,
        retry_failed: bool = False,
        progress: bool = True,
    ) -> GradientIndex:
        """Compute the feature of every clip that the index does not hold yet.

        Under `accelerate launch` every process takes its share and all of them write to `path`, which must be on a
        file system that they share. Killed at any instant, the same call goes on where it stopped. A clip that cannot
        be scored costs one row: it is recorded with its status and reason.

        Args:
            dataset: Rows with a video and a caption. A stream is read once, and its clips kept nowhere.
            path: Folder of the index; made if need be.
            retry_failed: Try the rows again that failed in an earlier run.
            progress: Show a bar with clips per second and time left (main process only).

        Returns:
            The index of `path`, open for reading. It may hold more rows than `dataset`.

        Raises:
            IndexMismatchError: `path` was computed with other settings; the message names them.
            IndexWriteError: the disk is full; what is written stays valid.
            ValueError: no rows, or a column is missing.
        """
        from datasets import Dataset
        from tqdm.auto import tqdm

        state = processes()
        dataset = self._readable(dataset)
        first: dict[str, int] | None = None
        if isinstance(dataset, Dataset):
            ids = self.ids(dataset)
            first = {identity: row for row, identity in reversed(list(enumerate(ids)))}  # id -> its first row
        index = GradientIndex.create_or_open(
            path,
            settings={"features": self.settings(), "provenance": _provenance(self.step)},
            dim=self.projection.dim,
            draws=self.config.draws,
            shard=f"{state.process_index:05d}",
        )
        with index:
            state.wait_for_everyone()  # all writers are there, and none has begun
            index.refresh()

            def wanted(identity: str) -> bool:
                return identity not in index or (retry_failed and index.status(identity) != "ok")

            if first is not None:
                todo = [item for item in sorted(first.items(), key=itemgetter(1)) if wanted(item[0])]
                total, done = len(first), len(first) - len(todo)
                share: Iterable = todo[state.process_index :: state.num_processes]
            else:
                total, done = None, len(index)
                share = self._share(dataset, wanted)
            state.wait_for_everyone()  # all have read what is done before anybody adds to it
            known = len(index)
            bar = tqdm(
                total=total,
                initial=done,
                desc="Scoring",
                unit="clip",
                smoothing=0.05,
                disable=not (progress and state.is_main_process),
            )
            workers = idle_threads(self.step.device) if self.workers is None else self.workers
            with bar:
                prepared = ahead(share, partial(self._prepare_row, dataset), workers)
                for identity, found in self._features(prepared):
                    retried = identity in index
                    if isinstance(found, ClipError):
                        index.append(identity, None, status=found.status, reason=found.reason)
                    else:
                        index.append(identity, found.draws, **found.facts)
                    # Rows that the other processes have written meanwhile count too.
                    new = len(index.refresh()) - known
                    known += new
                    bar.update(new + retried)
        state.wait_for_everyone()
        return GradientIndex.open(path)

    def _share(self, stream: IterableDataset, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Any]]:
        """This process's rows of a stream that are to be computed, each with its id, once for each id."""
        from datasets.distributed import split_dataset_by_node

        state, row_id = processes(), self.row_id
        met: set[str] = set()
        for example in split_dataset_by_node(stream, state.process_index, state.num_processes):
            identity = row_id(example)
            if identity not in met and wanted(identity):
                met.add(identity)
                yield identity, example

    def _prepare_row(
        self, dataset: Any, row: tuple[str, int | Mapping[str, Any]]
    ) -> tuple[str, _Prepared | ClipError]:
        """An id, and the row or its number, to the id and what `_prepare` makes of it, be it an error."""
        identity, example = row
        if isinstance(example, int):
            example = dataset[example]
        prepare = partial(self._prepare, example[self.video_column], example[self.caption_column])
        return identity, _or_error(prepare, example)

    def _features(
        self, clips: Iterable[tuple[str, _Prepared | ClipError]]
    ) -> Iterator[tuple[str, ClipFeature | ClipError]]:
        """The feature of each clip, or what is wrong with it.

        Every pass of a sharded denoiser needs all processes. There, they take a clip each when all have one that can
        be encoded; those that are through with their own repeat the last.
        """
        from accelerate.utils import gather_object

        if not self._sharded:
            for identity, clip in clips:
                encoded = _or_error(self._encode, clip)
                yield identity, _or_error(self._feature, encoded)
            return
        clips = iter(clips)
        last: _Encoded | None = None
        while True:
            mine: tuple[str, _Encoded] | None = None
            for identity, clip in clips:
                encoded = _or_error(self._encode, clip)
                if not isinstance(encoded, ClipError):
                    mine, last = (identity, encoded), encoded
                    break
                yield identity, encoded
            if not any(gather_object([mine is not None])):
                return
            found = _or_error(self._feature, last or self._encode(self._blank))
            if mine is not None:
                yield mine[0], found

    @property
    def _sharded(self) -> bool:
        return processes().num_processes > 1 and any(map(is_shared_out, self.step.denoisers.values()))

    @property
    def _blank(self) -> _Prepared:
        """Stands in for a clip where a process never had one."""
        standard = self.config.standard
        pixels = torch.zeros(standard.num_frames, 3, standard.height, standard.width)
        weight = torch.ones(self.step.latent_shape[1:])
        return _Prepared("a video", {**self.step.example, "pixels": pixels}, weight, math.nan, None)

    def influence(
        self,
        dataset: Dataset | IterableDataset,
        index: GradientIndex,
        queries: Dataset | GradientIndex,
        *,
        fraction: float = 0.1,
        percentile: float | None = None,
        group_column: str | None = None,
        per_query: bool = False,
        rivals: bool = False,
        progress: bool = True,
    ) -> Dataset | IterableDataset:
        """Add what the queries say about each clip.

        Args:
            dataset: The rows that were indexed, in any order, or some of them. A stream is read once more here, for
                the ids of its rows, and gives a stream.
            index: The index of `MotiveAttributor.index`.
            queries: Clips that move as wished, with captions, or their index. A dataset's features are kept beside
                `index`, in a folder of its name with `-queries` added, and computed once.
            fraction: Share of the clips one means to keep; with it the cut-off of a vote.
            percentile: A query votes for the clips whose influence exceeds this percentile of its own influences.
                None: 100 · (1 - fraction).
            group_column: A column of `queries`, e.g. the motion: adds a column `influence_<value>` for each of its
                values, the mean over that group's queries.
            per_query: Add a column for each query, by the name of its file, or by its id where it has none.
            rivals: Add what a cheaper choice would go by: `rival_random`, in [0, 1); `rival_whole_clip` and
                `rival_whole_clip_rank`, influence and rank without the mask, for which every clip is computed once
                more (kept in folders with `-whole` added). `motion_mean` is there anyway.
            progress: Show a bar while features are computed.

        Returns:
            `dataset` with these columns added:
            `influence`: mean cosine with the queries, in [-1, 1];
            `influence_votes`: number of queries that voted for the clip;
            `influence_rank`: 0 for the clip with most votes; equal votes by influence, then by order;
            `influence_status`, `influence_reason`: `ok`, or why the row is not ranked;
            `influence_id`: the row's id in the index;
            `influence_settings`, `influence_queries`: digests of what it was scored with: scores of others do not
            compare; `influence_model`: digest of the denoisers, whatever precision they were loaded in;
            `motion_mean`: its mean motion in pixels per frame.
            Rows that are not ranked hold NaN, with which every comparison is false: they enter no selection.

        Raises:
            IndexMismatchError: queries and index were computed with different settings.
            ValueError: no query, or no clip, has a feature; or what is asked for needs the queries' own clips.
        """
        self._readable(dataset)
        groups: list[str] | None = None
        if isinstance(queries, GradientIndex):
            if group_column is not None or rivals:
                raise ValueError(
                    "group_column and rivals are about the queries' clips, of which their index holds the features "
                    "alone: give the queries as a dataset"
                )
            query_index, query_ids = queries, queries.ids("ok")
            names = query_ids
        else:
            self._readable(queries, "the query dataset")
            if group_column is not None:
                if group_column not in queries.column_names:
                    raise ValueError(
                        f"the queries have no column {group_column!r} to group by; "
                        f"they have {', '.join(queries.column_names)}"
                    )
                groups = [str(value) for value in queries.with_format(None)[group_column]]
                check_groups(groups)
            query_index = self.index(queries, f"{Path(index.path)}-queries", progress=progress)
            query_ids = self.ids(queries)
            videos = as_files(queries.with_format(None), self.video_column)[self.video_column]
            names = [clip_name(video, identity) for video, identity in zip(videos, query_ids, strict=True)]
        if per_query:
            if groups is not None:
                raise ValueError("give group_column or per_query: a column a group, or a column a query")
            groups = _distinct(names, query_ids)
        index.check_comparable(query_index)
        others: Rivals | None = None
        if rivals:
            plain = self.without_mask()
            others = Rivals(
                plain.index(dataset, f"{Path(index.path)}-whole", progress=progress),
                plain.index(queries, f"{Path(index.path)}-queries-whole", progress=progress),
                self.config.seed,
            )
        found = self._ids_and_names(dataset)
        columns = influence_columns(
            [identity for identity, _ in found],
            index,
            query_ids,
            query_index,
            groups=groups,
            fraction=fraction,
            percentile=percentile,
            rivals=others,
            model=self.model_of(index),
        )
        return add_influence(dataset, columns, self.row_id, [name for _, name in found])

    # -- parts of a clip -----------------------------------------------------------------------------------------

    def explain(
        self,
        row: Mapping[str, Any],
        queries: Dataset | GradientIndex,
        *,
        seconds: float = 0.5,
        regions: str | None = None,
        objects: int = 3,
        whole: bool = False,
        stride: float | None = None,
    ) -> Explanation:
        """Which second of a clip, and which moving object, says what of the queries: shares of its influence.

        They add up to it (docs/segments.md). It costs one forward pass a draw, and one backward pass a draw and part
        (segment × region) that moves.

        Args:
            row: A row of a dataset, or any mapping with a video and a caption under the names of this attributor.
            queries: Their index (`MotiveAttributor.index`), or a dataset, whose features are then computed here.
            seconds: Length of a segment, about: whole latent frames are given to segments.
            regions: None: time alone. "motion": the objects that the motion mask shows. Or a column of labels: whole
                numbers (H, W) or (F, H, W), a number a region and 0 for the rest.
            objects: With "motion", how many at most; the others are in `rest`.
            whole: Explain all of a clip that is longer than the standard: windows of the standard's length, each
                scored as a clip of its own, whose curves are averaged where they overlap. False: the standard clip,
                which is what `influence` scores.
            stride: Seconds from one window to the next. None: half a window.

        Raises:
            ClipError: the clip cannot be scored; of a longer one, none of its windows.
            IndexMismatchError: the queries were computed with other settings.
            ValueError: no query has a feature, the standard has no rate (fps=None), or `whole` with masks or encodings
                from columns, which are of the standard clip.

        Example:
            >>> explanation = attributor.explain(clips[7], attributor.index(queries, "runs/queries"), regions="motion")
            >>> explanation.segments()       # [{"start": 0.0, "end": 0.56, "influence": 0.11, "motion": 0.4}, ...]
            >>> explanation.plot("clip7.png")
        """
        from .explaining import Cut, explain, queries_of

        return explain(self, row, queries_of(self, queries), Cut(seconds, whole, stride, regions, objects))

    def segments(
        self,
        dataset: Dataset,
        queries: Dataset | GradientIndex,
        path: str | Path | None = None,
        *,
        seconds: float = 0.5,
        regions: str | None = None,
        objects: int = 3,
        whole: bool = False,
        stride: float | None = None,
        per_query: bool = False,
        progress: bool = True,
    ) -> Dataset:
        """`explain` of every row, as columns.

        Args:
            dataset: Rows with a video and a caption, no stream; a few hundred of the best rather than all.
            queries, seconds, regions, objects, whole, stride: As `explain` takes them.
            path: Folder in which each clip's parts are kept, one file a clip: the same call goes on where it stopped,
                and other queries cost no gradient. None: they are kept nowhere.
            per_query: Add `by_query` to each segment and region, in the order of a column `explained_queries`.
            progress: Show a bar.

        Returns:
            `dataset` with these columns added:
            `explained_segments`: a list of `start` and `end` in seconds, `influence`, the mean over queries of the
            segment's share, and `motion`, its share of the loss's weight;
            `explained_regions`: a list of the same and `region`, `left`, `top`, `right`, `bottom` in [0, 1];
            `explained_best_start`, `explained_best_end`: the segment with the most influence per second;
            `explained_influence`: the sum of the shares, which is the clip's influence (with `whole` the mean over its
            windows);
            `explained_status`, `explained_reason`: `ok`, or why there is nothing: null lists and NaN.

        Raises:
            As `explain`; TypeError: a stream. A bad clip costs one row.
        """
        from .explaining import Cut, explain_rows

        cut = Cut(seconds, whole, stride, regions, objects)
        return explain_rows(self, dataset, queries, cut, kept_in=path, per_query=per_query, progress=progress)


def _or_error(function: Callable[[Any], Result], clip: Any) -> Result | ClipError:
    """What a function makes of a clip, or what was wrong with it before or is found so now."""
    if isinstance(clip, ClipError):
        return clip
    try:
        return function(clip)
    except ClipError as error:
        return error.with_traceback(None)  # whose frames hold the clip


def _distinct(names: list[str], ids: list[str]) -> list[str]:
    """Names that are told apart: one that several queries bear, or a column has already, has the id added."""
    clashes = {name for name, count in Counter(names).items() if count > 1 or is_reserved(name)}
    return [f"{name} {identity}" if name in clashes else name for name, identity in zip(names, ids, strict=True)]


def _provenance(step: PipelineStep) -> dict[str, Any]:
    """Recorded in the index, shown, and not compared: features agree across these within a stated tolerance."""
    from importlib.metadata import version

    packages = ("hf-motive", "torch", "diffusers", "transformers", "opencv-python-headless", "av")
    return {
        "pipeline": str(step.pipeline.config.get("_name_or_path")),
        "device": str(step.device),
        "threads": torch.get_num_threads(),
        **{package: version(package) for package in packages},
    }
