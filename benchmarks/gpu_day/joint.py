"""Trains strcnn_dtb_choice on, all sizes and gates together: python benchmarks/gpu_day/joint.py SECONDS OUT.

As it ran on an H200. data.npz beside it has JPEG files one after the other (blob, lengths, names):
textures cut from photographs, named t, and the frames of X4K scenes, named by their scene.
"""
import os, sys, time, io, functools, itertools, dataclasses, threading
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
T0 = time.monotonic()
import jax, jax.numpy as jnp, optax
from jax import lax
from PIL import Image
sys.path.insert(0, ".")
from jaxdeblur import models, presets
from jaxdeblur.data.render import render_scene
from jaxdeblur.data.scenes import SCENES, sample_scene
from jaxdeblur.data.exposure import average
from jaxdeblur.models.parameters import split
from jaxdeblur.training.step import (TrainingConfig, TrainState, best_parameters,
    initial_train_state, loss_and_statistics, make_optimizer)
from jaxdeblur.weights.load import LoadedModel, starting_parameters
from jaxdeblur.weights.save import export_weights

SECONDS, OUT = float(sys.argv[1]), Path(sys.argv[2])
SMALL = "--small" in sys.argv
SIDE, CROP, SEEN, FRAMES, PER = (64, 32, 8, 4, 2) if SMALL else (224, 160, 8, 4, 16)
BATCH, RATE, RENDER = (2 if SMALL else 16), 6e-4, 0.25
GROUPS = {"swift": 3, "wide": 2, "handheld": 1, "narrow": 2, "clean": 2, "small": 1, "x4k": 4}
if SMALL: GROUPS = {"narrow": 2, "x4k": 1}
TOTAL = 6 if SMALL else 120
SHARP = 0.05
def say(*a): print(f"[{time.monotonic()-T0:6.1f}]", *a, flush=True)
def left(): return SECONDS - (time.monotonic() - T0)

pool = ThreadPoolExecutor(12)
z = np.load(Path(__file__).with_name("data.npz"))
names, blob = z["names"], z["blob"].tobytes()
ends = np.cumsum(z["lengths"])
dec = lambda i: np.asarray(Image.open(io.BytesIO(blob[ends[i]-z_len[i]:ends[i]])).convert("RGB"))
z_len = z["lengths"]
decoded = list(pool.map(dec, range(len(names))))
textures = jnp.asarray(np.stack([d for d, n in zip(decoded, names) if n == "t"]))
scenes = {}
for d, n in zip(decoded, names):
    if n != "t": scenes.setdefault(str(n), []).append(d)
scenes = [np.stack(v) for v in scenes.values()]
say("decoded", textures.shape, len(scenes), jax.devices())

def x4k(seed):
    rng = np.random.default_rng((seed, 5))
    v = scenes[rng.integers(len(scenes))]
    for _ in range(6):
        tau = int(rng.choice([5, 7, 9, 11, 15]))
        period = int(np.ceil(tau / rng.uniform(0.6, 1)))
        count = min(SEEN, (len(v) - tau) // period + 1)
        if count < 2: continue
        length = tau + (count - 1) * period
        start = int(rng.integers(len(v) - length + 1))
        top, lft = int(rng.integers(v.shape[1] - SIDE + 1)), int(rng.integers(v.shape[2] - SIDE + 1))
        f = v[start:start+length, top:top+SIDE, lft:lft+SIDE]
        linear = bool(rng.random() < 0.35)
        b, s = (np.stack([of(f[n*period:][:tau]) for n in range(count)]) for of in (lambda e: average(e, linear), lambda e: e[tau//2]))
        if np.abs(b.astype(np.int16) - s).mean() > 1 or rng.random() < 0.2: break
    if rng.random() < SHARP: b = s
    first = int(rng.integers(max(0, count - FRAMES) + 1))
    at = np.clip(first + np.arange(-2, FRAMES + 2), 0, count - 1)
    return b[at], s[at]

def renderer(kind):
    c = SCENES[kind].at_least(SIDE)
    def one(key, textures):
        k1, k2, k3 = jax.random.split(key, 3)
        scene = sample_scene(k1, textures.shape[:2], c, SEEN, SIDE, jnp.float32(jnp.inf))
        b, s = render_scene(k2, scene, textures, c, SEEN, SIDE)
        b = jnp.where(jax.random.uniform(k3) < SHARP, s, b)
        return b, s
    return jax.jit(jax.vmap(one, in_axes=(0, None)))

render = {k: renderer(k) for k in GROUPS if k != "x4k"}
kinds = [k for k, n in GROUPS.items() for _ in range(n)]
key0 = jax.random.key(int(time.time()))
seed0 = int(time.time())

def warm(k):
    t = time.monotonic()
    f = render[k].lower(jax.random.split(key0, PER), textures).compile()
    return k, f, time.monotonic() - t
made = [pool.submit(warm, k) for k in render]

config = TrainingConfig(batch_size=BATCH, frames=FRAMES, crop=CROP, optimizer="muon", learning_rate=RATE,
    beta2=0.99, schedule="constant", warmup=1, loss="log_mse", average=0.999)
net = dataclasses.replace(presets.find("strcnn_dtb_choice").network, dtype="float32" if SMALL else "bfloat16")
model = models.build(net)
rebuild, drawn = split(model)
state = initial_train_state(config, starting_parameters(model, drawn, "strcnn_dtb_choice"))
optimizer = make_optimizer(config)
def loss_of(p, batch): return loss_and_statistics(rebuild(p), batch, config.loss)[0]

@functools.partial(jax.jit, donate_argnums=0)
def step(state, batch, rate):
    loss, g = jax.value_and_grad(loss_of)(state.parameters, batch)
    u, after = optimizer.update(g, state.optimizer, state.parameters)
    p = optax.apply_updates(state.parameters, jax.tree.map(lambda x: rate * x, u))
    d = jnp.minimum(config.average, (1 + state.step) / (10 + state.step))
    a = jax.tree.map(lambda a, q: d * a + (1 - d) * q, state.average, p)
    return TrainState(state.step + 1, p, after, a, state.failed), loss

@jax.jit
def cut(pool_b, pool_s, key):
    def one(key):
        k1, k2, k3, k4 = jax.random.split(key, 4)
        n = jax.random.randint(k1, (), 0, pool_b.shape[0])
        m = jax.random.randint(k4, (), 0, pool_b.shape[1])
        y, x = jax.random.randint(k2, (2,), 0, SIDE - CROP + 1)
        t = jax.random.bernoulli(k3, shape=(4,))
        def get(a, t0, T):
            c = lax.dynamic_slice(a, (n, m, t0, y, x, 0), (1, 1, T, CROP, CROP, 3))[0, 0]
            for ax in range(3): c = jnp.where(t[ax], jnp.flip(c, ax), c)
            return jnp.where(t[3], c.swapaxes(1, 2), c)
        return get(pool_b, 0, SEEN), get(pool_s, 2, FRAMES)
    b, s = jax.vmap(one)(jax.random.split(key, BATCH))
    return {"blurred": b, "sharp": s}

put = jax.jit(lambda pb, ps, n, b, s: (pb.at[n].set(b), ps.at[n].set(s)), donate_argnums=(0, 1))

shape = (PER, SEEN, SIDE, SIDE, 3)
def host_group(k):
    got = [x4k(seed0 + 100003 * k + i) for i in range(PER)]
    return np.stack([g[0] for g in got]), np.stack([g[1] for g in got])
n_x = sum(kinds[n % len(kinds)] == "x4k" for n in range(TOTAL))
hosts = [pool.submit(host_group, k) for k in range(n_x)]
def warm_step():
    b = {"blurred": jnp.zeros((BATCH, SEEN, CROP, CROP, 3), jnp.uint8), "sharp": jnp.zeros((BATCH, FRAMES, CROP, CROP, 3), jnp.uint8)}
    f = step.lower(state, b, np.float32(1)).compile()
    say("step compiled"); return f
step_f = pool.submit(warm_step)
for f in made:
    k, prog, sec = f.result(); render[k] = prog
    say("renderer", k, f"{sec:.1f}")
pb, ps = jnp.zeros((TOTAL, *shape), jnp.uint8), jnp.zeros((TOTAL, *shape), jnp.uint8)
count = itertools.count()
def draw(kind):
    return render[kind](jax.random.split(jax.random.fold_in(key0, next(count)), PER), textures)
t = time.monotonic()
hs = iter(hosts)
for n in range(TOTAL):
    kind = kinds[n % len(kinds)]
    b, s = next(hs).result() if kind == "x4k" else draw(kind)
    pb, ps = put(pb, ps, n, b, s)
jax.block_until_ready(pb)
say(f"pool of {TOTAL} groups in {time.monotonic()-t:.1f} s")
cost = {}
for k in render:
    jax.block_until_ready(draw(k)); t = time.monotonic(); jax.block_until_ready(draw(k)); cost[k] = time.monotonic() - t
say("a group takes, ms", {k: round(1e3 * v, 1) for k, v in cost.items()})
step = step_f.result()
if OUT.joinpath("x").exists(): pass
OUT.mkdir(parents=True, exist_ok=True)

def write(name):
    best = rebuild(best_parameters(state))
    n32 = dataclasses.replace(net, dtype="float32")
    export_weights(LoadedModel(best, "strcnn_dtb_choice", n32, int(state.step), "strcnn_dtb_choice", {"data": "scenes rendered on a GPU, and X4K"}), OUT / f"{name}.safetensors")

# The pace of steps alone, to share the time with rendering.
for i in range(3): state, loss = step(state, cut(pb, ps, jax.random.fold_in(key0, 10**6 + i)), np.float32(0.01))
jax.block_until_ready(loss); t = time.monotonic()
for i in range(10): state, loss = step(state, cut(pb, ps, jax.random.fold_in(key0, 10**6 + 9 + i)), np.float32(0.01))
jax.block_until_ready(loss); pace = (time.monotonic() - t) / 10
mean = np.mean([cost[k] for k in kinds if k != "x4k"])
every = max(1, int(np.ceil(mean / pace / RENDER)))
say(f"a step {1e3*pace:.1f} ms, a group every {every} steps")
end = 25 if not SMALL else 5
began, budget = time.monotonic(), left() - end
steps, losses, turn = 0, [], 0
pending = []
while (share := (time.monotonic() - began) / budget) < 1:
    rate = np.float32(min(1, (steps + 1) / 100) * 0.5 * (1 + np.cos(np.pi * share)))
    state, loss = step(state, cut(pb, ps, jax.random.fold_in(key0, 2 * 10**6 + steps)), rate)
    losses.append(loss); steps += 1
    if steps % every == 0:
        n = turn % TOTAL; turn += 1
        kind = kinds[n % len(kinds)]
        if kind == "x4k":
            pending.append((n, pool.submit(host_group, 10**5 + turn)))
            if pending[0][1].done():
                m, f = pending.pop(0); pb, ps = put(pb, ps, m, *f.result())
        else:
            pb, ps = put(pb, ps, n, *draw(kind))
    if steps % 10 == 0: jax.block_until_ready(loss)
    if steps in (1, 20, 100) or steps % 300 == 0:
        m = float(jnp.mean(jnp.stack(losses))); losses = []
        say(steps, f"loss {m:.4f}", f"turns {turn}", f"{left():.0f} s left")
        if not np.isfinite(m): sys.exit("not finite")
say(steps, "steps")
write("choice")
say("written")
