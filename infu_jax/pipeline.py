"""One photo and a prompt in, pictures of that person out. The one file that knows all parts.

Source: InfiniteYou's `pipelines/pipeline_infu_flux.py` (behaviour and defaults).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from infu_jax import checkpoint, checks, face, flow, hub, latents, lora, parking, programs, quantize, sampler
from infu_jax.checkpoint import HostParam
from infu_jax.config import SamplingConfig, Weights
from infu_jax.errors import InputError
from infu_jax.models.arcface import ArcFace
from infu_jax.models.autoencoder import Autoencoder
from infu_jax.models.clip import CLIPTextEncoder
from infu_jax.models.flux import Flux
from infu_jax.models.infusenet import InfuseNet
from infu_jax.models.resampler import Resampler
from infu_jax.models.t5 import T5Encoder
from infu_jax.recent import Recent, digest
from infu_jax.sharding import batch_sharding, check_heads, check_tokens, make_mesh
from infu_jax.tokenizers import Tokenizer, load_clip_tokenizer, load_t5_tokenizer

CLIP_LENGTH = 77
# Schedules are padded to this many times, so that another number of steps needs no other program.
SCHEDULE_PAD = 1024
# Of what prompts, faces and control images were encoded to, at most so many bytes stay in host memory: some 60 prompts of FLUX.1 in bfloat16.
KEPT_BYTES = 256 << 20
# Modulations are made for this many steps at once, for the same reason; FLUX.1-dev's and InfuseNet's take 2.6 MB a step and picture in bfloat16.
# They wait in host memory, and the loop is given those of so many steps.
TABLE_STEPS, LOOP_STEPS = 32, 8


@dataclass
class Pictures:
    """What a call returns.

    images: (B, height, width, 3) uint8 RGB, prompts in order, the pictures of one prompt together.
    prompts, seeds: of each picture.
    id_embedding: (B, 512) of the photo, L2-normalised.
    trace: every intermediate, if asked for; see `InfUPipeline.__call__`.
    """

    images: np.ndarray
    prompts: list[str]
    seeds: list[int]
    id_embedding: np.ndarray
    trace: dict[str, Any] | None = field(default=None, repr=False)


@dataclass
class InfUPipeline:
    """InfiniteYou for sampling. Make one with `load`, then call it.

    offload: what runs once per picture waits in host memory while the transformers run: all other models, and a quarter of the transformers.
    """

    flux: Flux
    infusenet: InfuseNet
    resampler: Resampler
    autoencoder: Autoencoder
    t5: T5Encoder
    clip: CLIPTextEncoder
    arcface: ArcFace
    t5_tokenizer: Tokenizer
    clip_tokenizer: Tokenizer
    detector: face.Detector
    schedule: flow.ScheduleConfig
    mesh: Mesh
    dtype: Any
    offload: bool = False
    # Encoded prompts, faces and control images by their content, so that the encoders run once for each; of these models, hence not an argument.
    recent: Recent = field(default_factory=lambda: Recent(KEPT_BYTES), init=False, repr=False)
    former: dict[str, dict[str, jax.Array]] = field(default_factory=dict, repr=False)  # what `set_loras` has changed, as it was before
    stored: dict[str, Mapping[str, HostParam]] = field(default_factory=dict, repr=False)  # of models in int8, what they were rounded from

    @classmethod
    def load(
        cls,
        base: str | os.PathLike,
        infu: str | os.PathLike,
        *,
        arcface: str | os.PathLike | None = None,
        transformer: str | os.PathLike | None = None,
        autoencoder: str | os.PathLike | None = None,
        loras: Sequence[tuple[str | os.PathLike, float]] = (),
        detector: face.Detector | None = None,
        mesh: Mesh | None = None,
        dtype: Any = jnp.float32,
        ema: bool = True,
        offload: bool = False,
        weights: Weights = "auto",
        progress: Callable[[str], None] = lambda name: None,
    ) -> InfUPipeline:
        """Load everything, from PyTorch files or from folders that `convert_weights.py to-jax` wrote; each path may be a Hugging Face id, see `hub`.

        Args:
            base: FLUX.1 folder (diffusers layout): transformer, VAE, text encoders, tokenizers, scheduler.
            infu: InfiniteYou folder with `InfuseNetModel/` and `image_proj_model.bin`, or a training run or one of its checkpoints.
            arcface: `recognition_arcface_ir_se50.pth`; by default looked for inside `infu`.
            transformer, autoencoder: other files for these two, e.g. BFL's single files.
            loras: LoRA files and their scales, merged for good into the transformer and the text encoders; see `set_loras` for others.
            detector: finds faces; YuNet by default, see `infu_jax.face.load_detector`.
            mesh: devices to spread over, by default one.
            ema: of a training run, take the average of the weights where it keeps one.
            dtype: of weights and computation; ArcFace, norms, softmax, schedule and latents stay float32.
            weights: int8 keeps the blocks of both transformers and of T5 in eight bits, see `quantize`; LoRAs are merged before they are rounded.
            progress: called with the name of each part before it is loaded.
        """
        mesh = mesh or make_mesh(devices=jax.devices()[:1])
        base = hub.local(base, ["companions", "clip", "t5", *([] if transformer else ["flux"]), *([] if autoencoder else ["autoencoder"])])
        infu = hub.local(infu, ["infusenet", "resampler", *([] if arcface else ["arcface"])])
        transformer, autoencoder, arcface = (path and hub.local(path, ["model"]) for path in (transformer, autoencoder, arcface))
        loras = [(hub.local(path, ["lora"]), scale) for path, scale in loras]
        places = dict(arcface=arcface or infu, resampler=infu, infusenet=infu, t5=base, clip=base, autoencoder=autoencoder or base, flux=transformer or base)
        # Everything that names, shapes and settings can tell comes first: a mistake should not cost the minutes that 12 billion parameters take.
        shapes = {name: checkpoint.check(checkpoint.open_model(path, name, ema=ema), mesh) for name, path in reversed(places.items())}
        check_heads(mesh, shapes["flux"].cfg.num_heads)
        check_tokens(mesh, shapes["resampler"].cfg.num_queries)
        clip_tokenizer, t5_tokenizer = load_clip_tokenizer(base / "tokenizer"), load_t5_tokenizer(base / "tokenizer_2")
        checks.check_models(**shapes, clip_tokenizer=clip_tokenizer, t5_tokenizer=t5_tokenizer)
        changes = [lora.read(path, scale, {name: shapes[name] for name in lora.MODELS}) for path, scale in loras]
        schedule = flow.read_schedule(base, shapes["flux"].cfg, transformer is not None)
        detector = detector or face.load_detector("yunet")
        models, stored = {}, {}
        for name, path in places.items():
            progress(name)
            added = lora.together(changes, name)
            if weights == "int8" and name in quantize.MODELS:
                stored[name] = lora.merge_stored(quantize.open_params(path, name, ema=ema), added)
                models[name] = quantize.load(name, shapes[name], stored[name], mesh, dtype)
            else:
                host = parking.PARKED_PARAMETERS if offload else None  # not even for a moment on the device
                models[name] = checkpoint.load_model(path, name, mesh=mesh, dtype=jnp.float32 if name == "arcface" else dtype, ema=ema, host=host)
                models[name], _ = lora.merge(models[name], added)
            if offload:  # at once, so that the transformers find the room that it leaves
                models[name] = parking.parked(name, models[name])
        return cls(
            **models, t5_tokenizer=t5_tokenizer, clip_tokenizer=clip_tokenizer, detector=detector, schedule=schedule, mesh=mesh, dtype=dtype, offload=offload,
            stored=stored,
        )  # fmt: skip

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        id_image: np.ndarray | None = None,
        id_embedding: np.ndarray | Sequence | None = None,
        control_image: np.ndarray | Sequence[np.ndarray] | None = None,
        keypoints: np.ndarray | None = None,
        negative_prompt: str | None = None,
        seeds: int | np.integer | Sequence[int | np.integer] | np.ndarray = 42,
        num_images: int = 1,
        settings: SamplingConfig | None = None,
        noise: np.ndarray | None = None,
        control_noise: np.ndarray | None = None,
        progress: Callable[[int, int], None] | None = None,
        trace: bool = False,
    ) -> Pictures:
        """Make `num_images` pictures for each prompt, B in all, as one batch.

        Args:
            prompts: what to paint.
            id_image: (h, w, 3) uint8 RGB photo; its largest face is the identity.
            id_embedding: (512,) or (B, 512), instead of `id_image`.
            control_image: (h, w, 3) photo whose largest face says where the face goes; its keypoints are drawn. Or a list of B photos.
            keypoints: (5, 2) or (B, 5, 2) in pixels of the result, instead of `control_image`. Without either it is black.
            negative_prompt: what to move away from; used where settings.true_cfg > 1.
            seeds: of each picture; a single number counts up over the batch.
            settings: sizes, steps, scales; the release's defaults.
            noise, control_noise: (B, height / 8, width / 8, 16) standard normal, instead of drawing them from the seeds.
            progress: called with (finished steps, steps) after each step.
            trace: return every intermediate, see `Pictures.trace`: id_embedding, id_tokens, txt, y, control_image, control_latents,
                noise, times, image (float, about [-1, 1]), and per step double_residuals, single_residuals (None outside the window), velocity, latents.
        Raises:
            NoFaceError: no face in `id_image` or `control_image`.
            InputError: settings or shapes that do not fit.
        """
        settings = settings or SamplingConfig()
        prompts = [p for p in ([prompts] if isinstance(prompts, str) else prompts) for _ in range(num_images)]
        seeds = checks.as_seeds(seeds, len(prompts))
        checks.check_call(prompts, seeds, num_images, settings, id_image, id_embedding, control_image, keypoints, negative_prompt)
        batch = len(prompts)
        h, w = settings.height // self.autoencoder_downscale, settings.width // self.autoencoder_downscale
        shape = (batch, h, w, self.autoencoder.cfg.z_channels)
        check_tokens(self.mesh, settings.t5_length, (h // 2) * (w // 2))

        if id_embedding is None:
            id_embedding = self.embed_face(id_image)
        id_embedding = checks.as_embeddings(id_embedding, batch, self.arcface.cfg.embedding_dim)
        drawn = self.draw_control(control_image, keypoints, settings)
        if drawn.ndim == 4 and len(drawn) != batch:
            raise InputError(f"there are {len(drawn)} control images or keypoints for {batch} pictures; give one for all, or one for each")
        noise = self._noise(noise, "noise", seeds, latents.LATENTS, shape)
        control_noise = self._noise(control_noise, "control_noise", seeds, latents.CONTROL, shape)

        with jax.set_mesh(self.mesh):
            text = self._encode_text(prompts, settings.t5_length)
            negative = self._encode_text([negative_prompt] * batch, settings.t5_length) if settings.true_cfg > 1 else None
            id_tokens = self._project(id_embedding)
            control = programs.sample_control(self.autoencoder.cfg, *self._encode_control(drawn), self._batch(control_noise))
            who = sampler.identity(self.infusenet.cfg, id_tokens, control, h, w, guidance=settings.infusenet_guidance, scale=settings.conditioning_scale)
            given = sampler.conditions(self.flux.cfg, text, h, w, guidance=settings.guidance, identity=who, negative=negative, true_cfg=settings.true_cfg)
            schedule = flow.schedule(settings.steps, (h // 2) * (w // 2), self.schedule)
            img, steps = self._denoise(latents.pack(self._batch(noise)), schedule, given, settings, progress, trace)
            at_once = programs.decoded_at_once(self.mesh, batch, settings)
            decoded = self._fetch(programs.decode(self._ready("autoencoder"), img, h=h, w=w, dtype=self.dtype, at_once=at_once))
            record = None
            if trace:
                record = dict(
                    id_embedding=id_embedding, id_tokens=self._fetch(id_tokens), txt=self._fetch(text.txt), y=self._fetch(text.y), control_image=drawn,
                    control_latents=self._fetch(control), noise=noise, times=schedule.times, image=decoded, **steps,
                )  # fmt: skip
        if bad := [seed for seed, image in zip(seeds, decoded) if not np.isfinite(image).all()]:
            raise InputError(
                f"the picture of seed {', '.join(map(str, bad))} has pixels that are NaN or infinite; look for such numbers in the weights, and try smaller "
                f"LoRA scales, a smaller guidance (it is {settings.guidance}), or dtype float32 (it is {jnp.dtype(self.dtype)})"
            )
        images = np.round(np.clip(decoded * 0.5 + 0.5, 0.0, 1.0) * 255.0).astype(np.uint8)
        return Pictures(images, prompts, seeds, id_embedding, record)

    def set_loras(self, loras: Sequence[tuple[str | os.PathLike, float]]) -> None:
        """Paint with these LoRA files and scales from now on, in the place of those given here before; with none, as loaded.

        The weights that they change wait in host memory, so nothing is loaded again but, where they are kept in int8, those very weights: they
        are rounded anew from storage, as `load` does. Raises ConversionError for a file that does not fit.
        """
        shapes = {name: checkpoint.abstract(name, getattr(self, name).cfg) for name in lora.MODELS}
        changes = [lora.read(hub.local(path, ["lora"]), scale, shapes) for path, scale in loras]
        for name in lora.MODELS:
            model, added = getattr(self, name), lora.together(changes, name)
            if not added and not self.former.get(name):
                continue
            if name in self.stored:  # rounded on the device
                model = lora.restore(parking.on_device(model) if self.offload else model, self.former.get(name, {}))
                model, former = quantize.replace(model, lora.merge_stored({path: self.stored[name][path] for path in added}, added))
                model = parking.parked(name, model) if self.offload else model
            else:
                model, former = lora.merge(lora.restore(model, self.former.get(name, {})), added, keep=True)
            setattr(self, name, model)
            self.former = {**self.former, name: former}  # a new one: copies of this pipeline have models of their own
            self.recent.clear()

    @property
    def autoencoder_downscale(self) -> int:
        return self.autoencoder.cfg.downscale

    def embed_face(self, image: np.ndarray) -> np.ndarray:
        """ArcFace embedding (512,) of the largest face of a photo (h, w, 3) uint8 RGB; NoFaceError if there is none."""
        key = ("face", digest(image))
        if (known := self.recent.get(key)) is not None:
            return known.copy()
        found = face.largest_face(self.detector, image)
        embedding = self.embed_crops(face.align(image, found.keypoints, self.arcface.cfg.image_size)[None])[0]
        if not np.isfinite(embedding).all():
            raise InputError("the embedding of a face is NaN or infinite; ArcFace's weights are damaged: download them again, or give others with --arcface")
        return self.recent.put(key, embedding).copy()

    def embed_crops(self, crops: np.ndarray) -> np.ndarray:
        """ArcFace embeddings (B, 512) of aligned faces (B, 112, 112, 3) uint8 BGR, see `face.align`."""
        with jax.set_mesh(self.mesh):
            return self._fetch(programs.embed(self._ready("arcface"), self._batch(face.arcface_input(crops))))

    def similarity(self, image: np.ndarray, id_embedding: np.ndarray) -> float | None:
        """Cosine between the face in a picture and an identity; None where no face is found."""
        try:
            return float(face.cosine(self.embed_face(image), id_embedding))
        except face.NoFaceError:
            return None

    def draw_control(self, control_image: np.ndarray | Sequence[np.ndarray] | None, keypoints: np.ndarray | None, settings: SamplingConfig) -> np.ndarray:
        """The control image (height, width, 3) uint8 RGB: five keypoints on black, or black. Of several photos or points several, (B, height, width, 3)."""
        if keypoints is not None:
            draw = lambda points: face.control_image_from_keypoints(points, settings.height, settings.width)  # noqa: E731
            return np.stack([draw(points) for points in keypoints]) if np.ndim(keypoints) == 3 else draw(keypoints)
        draw = lambda photo: face.control_image(photo, settings.height, settings.width, self.detector)  # noqa: E731
        return np.stack([draw(photo) for photo in control_image]) if isinstance(control_image, (list, tuple)) else draw(control_image)

    def _encode_text(self, prompts: Sequence[str], t5_length: int) -> sampler.Text:
        unique = list(dict.fromkeys(prompts))  # pictures of one prompt share the work
        rows = {prompt: self.recent.get(("text", prompt, t5_length)) for prompt in unique}
        for prompt in unique:
            if (count := self.t5_tokenizer.count(prompt)) > t5_length:
                warnings.warn(f"the prompt has {count} tokens; the last {count - t5_length} are cut: {prompt[:60]!r}...", stacklevel=3)
        if new := [prompt for prompt in unique if rows[prompt] is None]:
            t5_ids, clip_ids = self.t5_tokenizer.encode(new, t5_length), self.clip_tokenizer.encode(new, CLIP_LENGTH)
            txt, y = programs.encode_text(self._ready("t5"), self._ready("clip"), self._batch(t5_ids), self._batch(clip_ids), dtype=self.dtype)
            for n, prompt in enumerate(new):
                rows[prompt] = self.recent.put(("text", prompt, t5_length), self._keep((txt[n], y[n])))
        return sampler.Text(*(self._batch(jnp.stack(xs)) for xs in zip(*(self._back(rows[prompt]) for prompt in prompts))))

    def _project(self, id_embedding: np.ndarray) -> jax.Array:
        """ID tokens of a batch of faces."""
        key = ("id", digest(id_embedding))
        if (tokens := self.recent.get(key)) is None:
            tokens = self.recent.put(key, self._keep(programs.project(self._ready("resampler"), self._batch(id_embedding), dtype=self.dtype)))
        return self._batch(self._back(tokens))

    def _encode_control(self, drawn: np.ndarray) -> tuple[jax.Array, jax.Array]:
        """Mean and log-variance of the control image's latents, (1, h, w, z) each; of several images (B, h, w, z)."""
        if drawn.ndim == 4:
            return jax.tree.map(lambda *rows: jnp.concatenate(rows), *(self._encode_control(each) for each in drawn))
        key = ("control", digest(drawn))
        if (moments := self.recent.get(key)) is None:
            pixels = drawn[None].astype(np.float32) / 127.5 - 1.0
            moments = self.recent.put(key, self._keep(programs.encode_control(self._ready("autoencoder"), self._batch(pixels), dtype=self.dtype)))
        return self._back(moments)

    def _keep(self, x):
        """Arrays for `recent`, whole in host memory."""
        return jax.device_put(x, NamedSharding(self.mesh, P(), memory_kind="pinned_host"))

    def _back(self, x):
        return jax.device_put(x, NamedSharding(self.mesh, P()))

    def _denoise(self, img, schedule: flow.Schedule, given: sampler.Conditions, settings: SamplingConfig, progress, trace: bool):
        """The loop: one program for steps with InfuseNet, one for steps without; neither is compiled unless it is needed."""
        first, last = flow.window(settings.steps, settings.guidance_start, settings.guidance_end)
        if settings.conditioning_scale == 0:
            first, last = 0, 0
        elif first == last and settings.guidance_start < settings.guidance_end:  # one of no width is meant
            steps, near = settings.steps, min(int(settings.guidance_start * settings.steps), settings.steps - 1)
            warnings.warn(
                f"none of {steps} steps lies within guidance_start {settings.guidance_start} and guidance_end {settings.guidance_end} (the step there goes "
                f"from {near / steps:.3g} to {(near + 1) / steps:.3g}), so InfuseNet does nothing; widen the window or take more steps",
                stacklevel=3,
            )
        padded = jax.tree.map(lambda x: np.pad(x, (0, -len(x) % SCHEDULE_PAD)), schedule)
        tables = []
        for k in range(0, settings.steps, TABLE_STEPS):
            guided = max(first, k) < min(last, k + TABLE_STEPS)
            tables += self._tables(padded.model_times[k : k + TABLE_STEPS], given if guided else given._replace(identity=None))
        padded = jax.tree.map(jnp.asarray, padded)
        flux = parking.without_modulations(self.flux)
        record = dict(velocity=[], latents=[], double_residuals=[], single_residuals=[])
        for start, stop, guided in sampler.segments(settings.steps, first, last, LOOP_STEPS):
            infusenet, conditions, table = parking.without_modulations(self.infusenet), given, jax.tree.map(parking.here, tables[start // LOOP_STEPS])
            if not guided:
                infusenet, conditions, table = None, given._replace(identity=None), table._replace(infusenet=None)
            stride = 1 if progress or trace else stop - start
            for k in range(start, stop, stride):
                if trace:
                    img, v, residuals = programs.traced_step(flux, infusenet, img, padded, k, conditions, table, dtype=self.dtype)
                    for name, value in zip(record, (v, img, residuals and residuals.double, residuals and residuals.single)):
                        record[name].append(None if value is None else self._fetch(value))
                else:
                    img = programs.steps()(flux, infusenet, img, padded, k, k + stride, conditions, table, dtype=self.dtype)
                if progress:
                    img.block_until_ready()
                    progress(k + stride, settings.steps)
        return img, record

    def _tables(self, times: np.ndarray, given: sampler.Conditions) -> list[sampler.Tables]:
        """All models' modulations at some times, so that the loop needs no weights of theirs: of LOOP_STEPS each, in host memory."""
        modulation = partial(programs.modulation, dtype=self.dtype)
        whole = sampler.Tables(
            flux=modulation(self.flux, times, given.text.y, given.guidance),
            infusenet=given.identity and modulation(self.infusenet, times, given.text.y, given.identity.guidance),
            negative=given.negative and modulation(self.flux, times, given.negative.y, given.guidance),
        )
        return [jax.tree.map(lambda x, k=k: parking.aside(x[k : k + LOOP_STEPS]), whole) for k in range(0, len(times), LOOP_STEPS)]

    def _noise(self, given: np.ndarray | None, name: str, seeds: Sequence[int], purpose: int, shape: tuple[int, ...]) -> np.ndarray:
        if given is None:
            return np.stack([np.asarray(latents.noise(seed, purpose, *shape[1:])) for seed in seeds])
        if given.shape != shape:
            raise InputError(f"{name} is {given.shape}; {shape} is needed for this batch and size")
        return np.asarray(given, np.float32)

    def _batch(self, x) -> jax.Array:
        return jax.device_put(x, batch_sharding(self.mesh, len(x)))

    def _fetch(self, x: jax.Array) -> np.ndarray:
        """The whole array, on every process, however it is split."""
        return np.asarray(x if x.is_fully_addressable else jax.device_put(x, NamedSharding(self.mesh, P())))

    def _ready(self, name: str):
        """A model with its weights where its program wants them; where it is parked, a copy that goes when its user lets go of it."""
        model = getattr(self, name)
        return parking.on_device(model, but=parking.STREAMED.get(name)) if self.offload else model
