#!/usr/bin/env bash
# Run everything that needs a GPU in one call of under ten minutes: the tests that are skipped without one, a whole
# experiment, and the benchmarks at 224 pixels. Sized for an NVIDIA H200 with 16 cores.
#
#     benchmarks/gpu.sh [FOLDER [PART...]]
#
# FOLDER (default runs/gpu) gets a log of each part and, except for the tests, its record as JSON. The parts:
#
#   tests           the tests marked `cuda`
#   run             scenedistill run: teacher, plain and distilled student
#   step_profile    where the time of a student's step goes
#   bench           scenedistill bench: ResNet-101 teaches table1_resnet, online and from the store
#   bench_compiled  the same with compiled networks
#   race            time to accuracy beside the loops of other packages at default settings; with the teacher of `run`
#
# These run if no part is named. Further parts, each of some six minutes because it first tries the settings of a loop:
#
#   timm-tuned, torchdistill-tuned, textbook-tuned
#                   bench together with this loop of another package, which gives how many times as fast ours is
#
# Every part has a time limit, and all parts together 570 seconds. A failed part does not stop the others, and the exit
# status is 1 if one failed. Images are generated; nothing is downloaded. Without a GPU the same parts run on the CPU at
# a tiny size, which tests this script and measures nothing.
#
# Variables:
#   PYTHON=python3  the interpreter (default: that of .venv if there is one); it needs what the extras `test` and
#                   `bench` install, and need not have scenedistill itself
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-$root/runs/gpu}
parts=${*:2}
mkdir -p "$folder" && folder=$(cd "$folder" && pwd) && work=$(mktemp -d) && cd "$root" || exit 1
running=
trap 'rm -rf "$work"' EXIT
trap 'kill $running 2>/dev/null; exit 130' INT TERM
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export PYTHONPATH=$root/src${PYTHONPATH:+:$PYTHONPATH} SCENEDISTILL_CACHE=$work/cache

if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    "$python" -c 'import torch; print("torch", torch.__version__, "on", torch.cuda.get_device_name())'
    slack=1
    per_class=200 size=256 # images of each of the twelve classes, and their side
    pixels=224
    bench=(--teacher resnet101 --batch_size '[256]' --steps 40 --repeats 2)
    profile=(--teacher resnet101 --batch_sizes 256)
    teacher=(--teacher.name resnet18 --teacher.fit.epochs 8)
    epochs=5 batch=64
    loops=("scenedistill, online" "scenedistill, from the store" torchdistill-default timm-default textbook-default)
else
    echo "torch finds no GPU here: every part runs on the CPU at a tiny size, and its figures mean nothing"
    slack=10 # a busy machine may take its time
    per_class=4 size=32
    pixels=32
    bench=(--teacher table1_printed --batch_size '[8]' --steps 1 --repeats 1)
    profile=(--teacher table1_printed --batch_sizes 8)
    teacher=(--teacher.name table1_printed --teacher.fit.epochs 1)
    epochs=1 batch=8
    loops=(textbook-default)
fi
speed=(--data "$work/scenes" --pixels "[$pixels]" --students '[table1_resnet]' "${bench[@]}")

failed=0
summary=()

# part NAME SECONDS COMMAND...: run a command with its output in NAME.log, for at most so many seconds
part() {
    local name=$1 limit=$(($2 * slack)) left=$((570 * slack - SECONDS)) started=$SECONDS status=124
    shift 2
    rm -f "$folder/$name".{log,json} # of an earlier call
    if [ "$left" -gt 0 ]; then # a limit of 0 would be none
        [ "$limit" -lt "$left" ] || limit=$left
        echo "==> $name, at most $limit s"
        timeout --kill-after=10 "$limit" "$@" >"$folder/$name.log" 2>&1 &
        running=$! # in the background, so that Ctrl-C is noticed at once
        wait "$running"
        status=$?
        running=
    fi
    local note=""
    [ "$name" != tests ] || note=$(tail -n 1 "$folder/$name.log" 2>/dev/null) # how many were skipped
    [ "$status" -ne 124 ] || note="out of time"
    if [ "$status" -ne 0 ]; then
        failed=1
        tail -n 15 "$folder/$name.log" 2>/dev/null
    fi
    summary+=("$(printf '%-20s %7d %5d  %s' "$name" $((SECONDS - started)) "$status" "$note")")
}

echo "==> generating scenes"
"$python" -c "from scenedistill.data import generate; generate('$work/scenes', per_class=$per_class, size=$size)" || exit 1

for name in ${parts:-tests run step_profile bench bench_compiled race}; do
    case $name in
    tests) # only the files that have such tests: collecting all of them takes longer than running these
        part "$name" 90 "$python" -m pytest -q -m cuda $(grep -rl --include='test_*.py' 'reason="no CUDA device"' tests)
        ;;
    run)
        part "$name" 110 "$python" -m scenedistill.cli run "$work/scenes" --out "$work/run" \
            --results "$folder/run.json" --image_size $pixels --data.stored_size $size --data.train_ratio 0.75 \
            "${teacher[@]}" --teacher.weights none --teacher.fit.batch_size $batch --teacher.images_per_class 2 \
            --teacher.mining semihard --teacher.min_oa 0 --student.fit.epochs $epochs \
            --student.fit.batch_size $batch --student.fit.lr 0.02 --student.knowledge_views $epochs
        ;;
    step_profile)
        part "$name" 90 "$python" benchmarks/step_profile.py "$work/scenes" "$folder/step_profile.json" \
            --pixels $pixels "${profile[@]}"
        ;;
    bench)
        part "$name" 200 "$python" -m scenedistill.cli bench "${speed[@]}" --results "$folder/bench.json"
        ;;
    bench_compiled)
        if [ $slack -ne 1 ]; then
            summary+=("$name: left out, since compiling for a CPU takes minutes whatever the size")
        else
            part "$name" 250 "$python" -m scenedistill.cli bench "${speed[@]}" --compile true \
                --results "$folder/bench_compiled.json"
        fi
        ;;
    race)
        part "$name" 200 "$python" benchmarks/time_to_accuracy.py "$work/scenes" \
            "$work/run/seed0/teacher/weights.safetensors" "$folder/race.json" --split "$work/run/seed0/split.csv" \
            --epochs $epochs --batch_size $batch --target 0.3 --loops "${loops[@]}"
        ;;
    *-tuned) # in longer turns: their first batches were made while the worker processes started
        part "$name" 570 "$python" benchmarks/speed.py "${speed[@]}" --steps 120 --rivals "$name" \
            --results "$folder/$name.json"
        ;;
    *)
        echo "there is no part $name; the head of $0 lists them"
        failed=1
        ;;
    esac
done

printf '\n%-20s %7s %5s\n' part seconds exit
printf '%s\n' "${summary[@]-}"
echo "logs and records are in $folder"
exit $failed
