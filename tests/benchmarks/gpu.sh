#!/usr/bin/env bash
# Everything that only a CUDA card can say, in one call: tests/benchmarks/gpu.sh OUT [SIZES]. Needs the bench extra.
# Models are randomly initialised Qwen3 configurations: time and memory do not depend on what weights say.
set -euo pipefail
out=$(realpath -m "${1:?folder for the results}"); sizes=${2:-1.7B 4B 8B}
here=$(dirname "$(realpath "$0")"); models=$(mktemp -d); trap 'rm -rf "$models"' EXIT
mkdir -p "$out"
python -c 'import torch; assert torch.cuda.is_available(), "no CUDA card here"; print(torch.cuda.get_device_name())'

for size in $sizes; do
    python "$here/random_model.py" "$size" "$models/$size"
    if [ "$size" != 8B ]; then
        for bits in nf4 none; do
            python "$here/bench.py" --model "$models/$size" --quantize $bits --only step --experience 2000,8000 \
                --out "$out/gpu.jsonl"
        done
        for games in 16 64 128; do
            python "$here/bench.py" --model "$models/$size" --only turns --games $games --padded $games \
                --out "$out/gpu.jsonl"
        done
    fi
    # the whole loop within a smaller card's memory: 15 GiB, 24 GiB for 8B
    cap=$([ "$size" = 8B ] && echo 24 || echo 15)
    python - "$models/$size" $cap "$out/loop_$size" <<'LOOP' | tee "$out/loop_$size.txt"
import sys, torch
from oelkit import Run, Settings, summary
model, cap, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
torch.cuda.set_per_process_memory_fraction(cap * 2**30 / torch.cuda.get_device_properties(0).total_memory)
run = Run(folder, Settings(model=model, rounds=2, extract_games=16, state_games=16, num_draws=2, steps=4,
                           eval_maps=16, prompt_set="paper", run_ablations=False))
(run.round_folder(1) / "items.jsonl").write_text(open("data/sample/items.jsonl").read())  # random weights write none
print(summary(run.run_all()))
print(f"{model.rsplit('/')[-1]}: peak {torch.cuda.max_memory_allocated() / 2**30:.1f} of {cap} GiB")
LOOP
done
python "$here/bench.py" --model "$models/${sizes%% *}" --only kl --rows 8192 --out "$out/gpu.jsonl"
