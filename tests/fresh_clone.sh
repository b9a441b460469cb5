#!/usr/bin/env bash
# Does what the README says on a fresh copy of the tree: serves, asks for a completion, streams one.
#
# The commands stand in README.md in the first ```bash fence after each of the marks `<!-- test:serve -->`,
# `<!-- test:generate -->`, `<!-- test:generate_stream -->` and `<!-- test:tools -->`; the answer it promises stands in the fence
# after `<!-- test:answer -->`. Then the same for hybrid serving: `far` and `near` start two servers, `hybrid` asks, and
# the answer's head has every line of the fence after `said`. They are run as written. CARGO_TARGET_DIR points at this tree's target
# folder, so that nothing is built twice.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
servers=()
stop_servers() {
    # A server is a process group of its own: a command line may hold `cargo run`, which has a child.
    for server in ${servers[@]+"${servers[@]}"}; do
        kill -TERM -- "-$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    done
    servers=()
}
stop() {
    stop_servers
    rm -rf "$work"
}
trap stop EXIT
trap 'exit 130' INT TERM

fail() {
    echo "fresh_clone: $*" >&2
    for log in "$work"/*.log; do
        [[ -s $log ]] || continue
        echo "the words of $(basename "$log" .log):" >&2
        tail -n 40 "$log" >&2
    done
    exit 1
}

if git -C "$root" rev-parse --verify --quiet HEAD >/dev/null 2>&1; then
    git clone --quiet --no-hardlinks "$root" "$work/clone"
elif git -C "$root" rev-parse --git-dir >/dev/null 2>&1; then
    mkdir "$work/clone"
    git -C "$root" ls-files -z --cached --others --exclude-standard |
        tar -C "$root" --null --ignore-failed-read -T - -cf - | tar -C "$work/clone" -xf -
else
    mkdir "$work/clone"
    tar -C "$root" --exclude=./target --exclude=./.git -cf - . | tar -C "$work/clone" -xf -
fi
cd "$work/clone"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$root/target}"
[[ -f README.md ]] || fail "there is no README.md"

# Prints the inside of the first fence after a mark.
fence() {
    awk -v mark="<!-- test:$1 -->" '
        index($0, mark) { found = 1; next }
        found && /^```/ { if (inside) exit; inside = 1; next }
        inside { print }
    ' README.md
}

serve=$(fence serve | grep -v '^[[:space:]]*\(#.*\)\?$' | head -n 1 || true)
generate=$(fence generate)
generate_stream=$(fence generate_stream)
tools=$(fence tools)
answer=$(fence answer)
far=$(fence far)
near=$(fence near)
hybrid=$(fence hybrid)
said=$(fence said)
for name in serve generate generate_stream tools answer far near hybrid said; do
    [[ -n ${!name} ]] || fail "README.md has no fence after <!-- test:$name -->"
done

# Starts a server by its command and waits until it is ready; a cold build may come first.
start() {
    echo "+ $2"
    setsid bash -c "$2" >"$work/$1.log" 2>&1 &
    servers+=($!)
    for _ in $(seq 9000); do
        grep -q Connected "$work/$1.log" && return
        kill -0 "${servers[-1]}" 2>/dev/null || fail "$1 did not start"
        sleep 0.2
    done
    fail "$1 is not ready"
}

start serve "$serve"
echo "+ $generate"
bash -euo pipefail -c "$generate" >"$work/generate" || fail "the command to generate failed"
echo "+ $generate_stream"
bash -euo pipefail -c "$generate_stream" >"$work/generate_stream" || fail "the command to stream failed"
echo "+ $tools"
bash -euo pipefail -c "$tools" >"$work/tools" || fail "the command with tools failed"

python3 - "$work" "$answer" <<'PY' || fail "the answers are not what README.md says"
import json
import sys

work, shown = sys.argv[1:]


def generated_text(text):
    """The text of an answer of either route, or of a plain sentence."""
    try:
        body = json.loads(text)
    except ValueError:
        return text.strip("\n")
    return (body[0] if isinstance(body, list) else body)["generated_text"]


answer = json.load(open(f"{work}/generate"))
text = generated_text(json.dumps(answer))
if not text:
    sys.exit("generated_text is empty")
if text != generated_text(shown):
    sys.exit(f"README.md shows {generated_text(shown)!r}, the server says {text!r}")

lines = open(f"{work}/generate_stream").read().splitlines()
frames = [line for line in lines if line.startswith("data:")]
last = json.loads(frames[-1].removeprefix("data:"))
if not last.get("generated_text"):
    sys.exit(f"the stream ends with {last}")

calls = json.load(open(f"{work}/tools"))["choices"][0]["message"].get("tool_calls") or []
if [call["function"]["name"] for call in calls] != ["get_weather"] or "Oslo" not in json.dumps(calls):
    sys.exit(f"the calls are {calls}")
PY
stop_servers

# State and audit log stand in the home of whoever starts it.
export HOME="$work/home" CARGO_HOME="${CARGO_HOME:-$HOME/.cargo}" RUSTUP_HOME="${RUSTUP_HOME:-$HOME/.rustup}"
mkdir "$HOME"
unset XDG_STATE_HOME
start far "$far"
start near "$near"
echo "+ $hybrid"
bash -euo pipefail -c "$hybrid" | tr -d '\r' >"$work/hybrid" || fail "the command to ask for far failed"
head -n 1 "$work/hybrid" | grep -q ' 200 ' || fail "far answers $(cat "$work/hybrid")"
while read -r line; do
    grep -qxF "$line" "$work/hybrid" || fail "README.md promises '$line', the answer is $(cat "$work/hybrid")"
done <<<"$said"
grep -q '"content":"[^"]' "$work/hybrid" || fail "far says nothing: $(cat "$work/hybrid")"
verify=$(grep -o 'cargo run --release -- audit verify[^`]*' README.md | head -n 1)
echo "+ $verify"
bash -euo pipefail -c "$verify" || fail "the audit log does not hold"
echo "fresh_clone: the README's commands do what it says"
