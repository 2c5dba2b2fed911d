#!/usr/bin/env bash
# The one door for shell users: ./run.sh lists what it does. All paths, given or not, are below the folder it is started
# in. Where one Python program is all there is to run it takes this shell's place, and with it all signals.
set -euo pipefail
home=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
venv=$home/.venv
export PYTHONPATH="$home${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1    # ours, not those of the folder we are in
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-3}"
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"    # huge pages, where Linux gives them on request

usage() {
  cat <<'TEXT'
usage: ./run.sh VERB [...]

  setup              make .venv and install requirements.txt (PYTHON=python3.12 chooses the interpreter)
  demo               small data, short training of SQAIR and R-SQAIR: tables and figures in results/demo
  data               the paper's data sets, data/balls4mass64.h5 and data/balls678mass64.h5
  train MODEL SEED   train sqair_balls, rsqair_in, rsqair_rmc, rsqair_rmc_slots, ... in runs/MODEL_SEED;
                     further options go to sqair.train
  eval RUN [DATA]    likelihoods and figures of a run on DATA (default data/balls4mass64.h5) in results/
  paper              the paper's comparison; MODELS="sqair in rmc" SEEDS="0 1 2 3 4" JOBS=1 are the defaults,
                     SCALE=short trains by the short recipe, SCALE=small tries all of it in 20 minutes;
                     --dry_run prints the commands and why they would run, --help all options
  bench              seconds per training step, side by side
  test               all tests; further options go to pytest

Folders data, runs and results are made in the folder you are in; paths that you give start there too.
TEXT
}

fail() { echo "error: $*" >&2; exit 1; }

# Runs a command as a child. A signal to this shell is passed on; the shell ends when the child has, as shells expect.
child=
start() {
  if [ -n "$stopped" ]; then exit "$stopped"; fi
  R_SQAIR_PARENT=$$ "$@" <&0 &
  child=$!
  [ -z "$stopped" ] || kill -TERM "$child"      # it came meanwhile
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

become() { trap - HUP INT TERM; exec "$venv/bin/python" "$@"; }     # nothing is left to do after it

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
      evaluate "$1" "${2:-data/balls4mass64.h5}" "results/$(basename "$1")" "${@:3}"
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
      for word in "$@"; do      # files, which start where the user stands
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

evaluate() { # run, data, folder of results, options of eval.likelihood ...
  local text code=0
  text=$(mktemp)
  python -m eval.likelihood --run "$1" --data "$2" --out "$3/likelihood.json" "${@:4}" >"$text" || code=$?
  if [ "$code" = 0 ]; then mkdir -p "$3"; tee "$3/likelihood.txt" <"$text"; fi
  rm "$text"
  [ "$code" = 0 ] || return "$code"
  python -m eval.figures --run "$1" --data "$2" --out "$3/sequences.png"
}

demo() {
  local results=results/demo data=results/demo/balls.h5 started=$SECONDS relation
  local short=(--train_data "$data" --log_itr 100 --report_loss_every 20 --save_itr 100 --fig_itr 100 --no-eval_on_train)
  mkdir -p "$results"
  [ -e "$data" ] || python -m data_gen.bouncing_balls --preset balls4mass64 --training 4000 --validation 320 --test 320 \
    --n_frames 10 --out "$data"
  echo "demo: SQAIR, 300 steps from scratch" >&2
  python -m sqair.train --preset sqair_balls --run_dir "$results/sqair/run" --train_itr 300 "${short[@]}"
  evaluate "$results/sqair/run" "$data" "$results/sqair"
  for relation in $("$venv/bin/python" -c 'from relational import RELATIONS; print(*RELATIONS)'); do
    echo "demo: R-SQAIR ($relation), 40 steps on from there" >&2
    python -m sqair.train --preset "rsqair_$relation" --run_dir "$results/rsqair_$relation/run" \
      --init_from "$results/sqair/run" --train_itr 40 "${short[@]}"
    evaluate "$results/rsqair_$relation/run" "$data" "$results/rsqair_$relation"
  done
  echo "demo: $((SECONDS - started)) s. Tables: $results/*/likelihood.txt. Figures: $results/*/sequences.png."
}

main "$@"
