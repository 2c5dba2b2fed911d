#!/usr/bin/env bash
# The entry point for shell users; without arguments it lists its verbs. Relative paths, given or not, start in the
# current folder. A verb that runs a single Python program is replaced by it, so that the program gets all signals.
set -euo pipefail
home=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
venv=$home/.venv
export PYTHONPATH="$home${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1    # our modules, not those of the current folder
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-3}"
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"    # huge pages, where Linux provides them on request

usage() {
  cat <<'TEXT'
usage: ./run.sh VERB [...]

  setup              make .venv and install requirements.txt (PYTHON=python3.12 chooses the interpreter)
  demo               balls tracked and predicted by a trained model, and by one that it trains for three minutes:
                     pictures, animations and a page in results/demo
  data               the paper's data sets, data/balls4mass64.h5 and data/balls678mass64.h5
  train MODEL SEED   train sqair_balls, rsqair_in, rsqair_rmc, rsqair_rmc_slots, ... in runs/MODEL_SEED;
                     further options go to sqair.train
  eval RUN [DATA]    likelihoods and figures of a run on DATA (default data/balls4mass64.h5) in results/
  paper              the paper's comparison; MODELS="sqair in rmc" SEEDS="0 1 2 3 4" JOBS=1 are the defaults,
                     SCALE=short trains by the short recipe, SCALE=small tries all of it in 20 minutes;
                     --dry_run prints the commands and why they would run, --help all options
  bench              seconds per training step, side by side
  test               all tests; further options go to pytest

Folders data, runs and results are made in the current folder; relative paths start there too.
TEXT
}

fail() { echo "error: $*" >&2; exit 1; }

# Runs a command as a child. A signal to this shell is passed on; the shell ends when the child has, as shells expect.
child=
start() {
  if [ -n "$stopped" ]; then exit "$stopped"; fi
  R_SQAIR_PARENT=$$ "$@" <&0 &
  child=$!
  [ -z "$stopped" ] || kill -TERM "$child"      # it came in the meantime
  local code=0
  wait "$child" || code=$?
  while [ -n "$stopped" ] && kill -0 "$child" 2>/dev/null; do wait "$child" || true; done
  child=
  if [ -n "$stopped" ]; then exit "$stopped"; fi
  return "$code"
}
stopped=
on_signal() { # the second one kills
  [ -z "$child" ] || kill -s "$([ -n "$stopped" ] && echo KILL || echo TERM)" "$child" 2>/dev/null || true
  stopped=${stopped:-$1}
}
trap 'on_signal 129' HUP
trap 'on_signal 130' INT
trap 'on_signal 143' TERM

setup() {
  local python=${PYTHON:-} candidate wanted
  if [ -z "$python" ]; then
    [ -x "$venv/bin/python" ] && python=$venv/bin/python
    for candidate in python3 python3.13 python3.12 python3.11 python3.10; do
      [ -z "$python" ] && supported "$candidate" && python=$candidate
    done
    [ -n "$python" ] || fail "no Python 3.10 to 3.13 found; install one or name it: PYTHON=/path/to/python ./run.sh setup"
  fi
  supported "$python" || fail "$python is not a working Python 3.10 to 3.13; choose one: PYTHON=/path/to/python ./run.sh setup"
  wanted=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; cat "$home/requirements.txt")
  if [ -x "$venv/bin/python" ] && [ "$(cat "$venv/installed" 2>/dev/null)" = "$wanted" ]; then return; fi
  echo "setup: installing requirements.txt into $venv (a minute or two)" >&2
  if [ "$python" != "$venv/bin/python" ]; then
    start "$python" -m venv --clear "$venv" || fail "$python could not make $venv; on Debian install its venv package"
  fi
  start "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$home/requirements.txt" \
    >"$venv/install.log" 2>&1 \
    || fail "installing requirements.txt failed: $(grep -i error "$venv/install.log" | tail -n 1) (whole log: $venv/install.log)"
  echo "$wanted" >"$venv/installed"
}

supported() {
  "$1" -c 'import sys; raise SystemExit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

workers() { local cores; cores=$(nproc 2>/dev/null || echo 2); echo $((cores > 4 ? 4 : cores)); }

python() { start "$venv/bin/python" "$@"; }

become() { trap - HUP INT TERM; exec "$venv/bin/python" "$@"; }     # the last command of a verb

main() {
  local verb=${1:-}
  [ $# -gt 0 ] && shift
  case "$verb" in
    setup) setup ;;
    demo) setup; demo ;;
    data)
      setup
      [ -e data/balls4mass64.h5 ] || python -m data_gen.bouncing_balls --preset balls4mass64 --out data/balls4mass64.h5
      [ -e data/balls678mass64.h5 ] || python -m data_gen.bouncing_balls --preset balls678mass64 --out data/balls678mass64.h5
      ;;
    train)
      [ $# -ge 2 ] || fail "usage: ./run.sh train MODEL SEED [options of sqair.train]"
      setup
      local model=$1 seed=$2
      shift 2
      become -m sqair.train --preset "$model" --run_dir "runs/${model}_$seed" --seed "$seed" "$@"
      ;;
    eval)
      [ $# -ge 1 ] || fail "usage: ./run.sh eval RUN [DATA [options of eval.likelihood]]"
      setup
      local data=${2:-data/balls4mass64.h5} folder
      folder=results/$(basename "$1")
      evaluate "$1" "$data" "$folder" "${@:3}"
      python -m eval.figures --run "$1" --data "$data" --out "$folder/sequences.png"
      ;;
    paper)
      setup
      local options=()
      [ -n "${SCALE:-}" ] && options+=(--scale "$SCALE")
      [ -n "${MODELS:-}" ] && options+=(--models $MODELS)
      [ -n "${SEEDS:-}" ] && options+=(--seeds $SEEDS)
      [ -n "${JOBS:-}" ] && options+=(--jobs "$JOBS")
      become -m eval.paper ${options[@]+"${options[@]}"} "$@"
      ;;
    bench) setup; become -m eval.benchmark "$@" ;;
    test)
      setup
      local words=() word
      for word in "$@"; do      # files, relative to the user's folder
        [ ! -e "${word%%::*}" ] || word=$(readlink -f "${word%%::*}")${word#"${word%%::*}"}
        words+=("$word")
      done
      cd "$home"
      unset PYTHONSAFEPATH
      become -m pytest -q -n "$(workers)" ${words[@]+"${words[@]}"}
      ;;
    "") usage ;;
    *) usage >&2; fail "no such verb: $verb" ;;
  esac
}

evaluate() { # run, data, folder of results, options of eval.likelihood ...: its table and JSON
  local text code=0
  text=$(mktemp)
  python -m eval.likelihood --run "$1" --data "$2" --out "$3/likelihood.json" "${@:4}" >"$text" || code=$?
  if [ "$code" = 0 ]; then mkdir -p "$3"; tee "$3/likelihood.txt" <"$text"; fi
  rm "$text"
  return "$code"
}

# The first of some models that is shipped.
shipped() {
  local name
  for name in "$@"; do
    if [ -e "$home/models/$name/model.safetensors" ]; then echo "$home/models/$name"; return; fi
  done
  fail "$home/models: none of $* in it; ./run.sh demo shows a model of this repository"
}

show() { # run, data, picture, options of eval.figures ...
  python -m eval.figures --run "$1" --data "$2" --out "$3" --gif --generate_after 5 --n_sequences 3 "${@:4}"
}

demo() {
  local results=results/demo started=$SECONDS steps=750 sequences=6000 model wide slots=8
  [ "${SCALE:-}" != small ] || { steps=2 sequences=64; }
  local four=$results/4_balls.h5 many=$results/6_to_8_balls.h5 training=$results/training.h5
  model=$(shipped rsqair_rmc rsqair_in sqair_balls)
  wide=$(shipped rsqair_rmc_slots sqair_balls rsqair_in rsqair_rmc)      # IN predicts 8 badly (docs/results.md)
  [ "$wide" != "$home/models/rsqair_rmc" ] || slots=4      # its weights fix the number that it was trained with
  mkdir -p "$results"
  # No other data set has this seed: no model has seen these balls.
  python -m data_gen.bouncing_balls --preset balls4mass64 --n_frames 10 --training 0 --validation 0 --test 64 \
    --seed 1 --out "$four"
  python -m data_gen.bouncing_balls --preset balls678mass64 --n_frames 10 --test 64 --seed 1 --out "$many"
  echo "demo: $(basename "$model") on balls that it has not seen" >&2
  show "$model" "$four" "$results/shipped/figure3_4_balls.png"
  echo "demo: first picture after $((SECONDS - started)) s: $results/shipped/figure3_4_balls.png (and .gif)" >&2
  show "$wide" "$many" "$results/shipped/figure3_6_to_8_balls.png" --n_slots "$slots"
  evaluate "$model" "$four" "$results/shipped"
  echo "demo: SQAIR from scratch, $steps steps of the short recipe, its rate falling sooner" >&2
  [ -e "$training" ] || python -m data_gen.bouncing_balls --preset balls4mass64 --n_frames 10 --training "$sequences" \
    --validation 320 --test 0 --seed 2 --out "$training"
  python -m sqair.train --preset sqair_balls --recipe short --train_itr "$steps" --decay_itr $((steps * 2 / 5)) \
    --max_seq_len 5 --train_data "$training" --run_dir "$results/trained/run"
  show "$results/trained/run" "$four" "$results/trained/figure3_4_balls.png"
  evaluate "$results/trained/run" "$four" "$results/trained"
  python -m eval.page --results "$results" --runs "$model" --title "Demo: bouncing balls" --command "./run.sh demo"
  echo "demo: $((SECONDS - started)) s. Everything is on one page, open it in a browser: $PWD/$results/index.html"
}

main "$@"
