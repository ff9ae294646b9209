"""Does a caller learn from Switchboard what the device API promises, and from NATS alone what the benchmark's page says?"""

import json
import subprocess

from harness.programs import built

ANSWER, NOTHING = ["answer"], []
# What callers read of each fate of their target; the timeout they ask for is 2 s.
SWITCHBOARD = {
    "absent": ["offline"],
    "not-allowed": ["denied"],
    "dies-before-reading": ["lost"],
    "dies-after-reading": ["lost"],
    "stays-silent": ["timed_out"],
    "answers-late": ["timed_out"],
    "answers-twice": ANSWER,
    # The caller's own node lives; it is in doubt about the other one for longer than the call may take.
    "server-killed": ["timed_out"],
}
NATS = {
    "absent": ["503"],
    "not-allowed": ["-ERR"],
    "dies-before-reading": NOTHING,
    "dies-after-reading": NOTHING,
    "stays-silent": NOTHING,
    "answers-late": ANSWER,
    "answers-twice": ANSWER * 2,
    "server-killed": ["cut off"],
}
TIMEOUT_MS = 2_000
EARLIEST_MS = {"stays-silent": TIMEOUT_MS, "answers-late": TIMEOUT_MS}


def test_what_a_caller_learns(tmp_path):
    file = tmp_path / "learned.json"
    systems = {"switchboard-2": SWITCHBOARD, "nats-users": NATS}
    bench = [built("switchboard-bench"), "run", "--learns", "--systems", ",".join(systems), "--json", file]
    subprocess.run(bench, check=True, timeout=120)
    learned = json.loads(file.read_text())
    for system, promised in systems.items():
        heard = {it["fate"]: it["heard"] for it in learned if it["system"] == system}
        assert {fate: [it["what"] for it in each] for fate, each in heard.items()} == promised, system
        for fate, each in heard.items():
            assert all(it["after_ms"] >= EARLIEST_MS.get(fate, 0) for it in each), (system, fate, each)
