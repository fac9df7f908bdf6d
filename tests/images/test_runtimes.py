"""What the runtime images hold: programs that work, and nothing of the machine that built them.

Our own commands run in a chroot of the image; handlers run in containers only.
"""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest

from images import records
from images.build import HERE
from images.recipe import EMPTIED, digest, plan, runtime_recipe
from images.runtimes import RUNTIMES

pytestmark = pytest.mark.slow

RUN = [name for name, one in RUNTIMES.items() if one.languages]
SHARP = """
const sharp = require("/node_modules/sharp")
const red = {create: {width: 8, height: 8, channels: 3, background: "red"}}
sharp(red).png().toBuffer().then(made => console.log(made.subarray(1, 4).toString()))
"""
PUPPETEER = """
const puppeteer = require("/node_modules/puppeteer")
async function main() {
  const browser = await puppeteer.launch({args: ["--no-sandbox", "--disable-dev-shm-usage"]})
  const page = await browser.newPage()
  await page.setContent("<p>drawn</p>")
  console.log(await page.evaluate(() => document.body.innerText))
  await browser.close()
}
main()
"""
FFMPEG = "ffmpeg -loglevel error -f lavfi -i testsrc=d=1:s=64x64:r=5 -f mp4 -y /tmp/x.mp4"
PROBE = "ffprobe -loglevel error -show_entries format=duration -of csv=p=0 /tmp/x.mp4"


# With its own /dev and /proc, which end with it.
CHROOT = """
mount --rbind /dev "$1/dev"
mount -t proc proc "$1/proc"
root="$1"
shift
exec chroot --userspec=1000:1000 --groups= "$root" "$@"
"""


@pytest.fixture(scope="session")
def enter(shared, tmp_path_factory):
    """Opens a working container over a runtime's image: (folder of its files, run a command)."""
    if os.geteuid() != 0:
        pytest.skip("NO root: the files of an image cannot be seen from outside")
    folder = tmp_path_factory.mktemp("storage")
    (folder / "storage.conf").write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/root"\nrunroot = "{folder}/run"\n'
        f"[storage.options]\nadditionalimagestores = {json.dumps([str(shared)])}\n"
    )
    (folder / "containers.conf").write_text(
        f'[network]\nnetwork_backend = "netavark"\nnetwork_config_dir = "{folder}/networks"\n'
    )
    env = {
        **os.environ,
        "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
        "CONTAINERS_CONF": str(folder / "containers.conf"),
    }

    def run(*argv, **more):
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120, **more)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    @contextmanager
    def opened(name):
        image = records.made_by([shared], runtime_recipe(name, HERE / "agent"))
        run("buildah", "from", "--pull=never", "--name", name, image.id, env=env)
        try:
            root = run("buildah", "mount", name, env=env)

            def inside(*argv):
                own = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
                only = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}  # for the shell and chroot
                return run(*own, "sh", "-euc", CHROOT, "sh", root, *argv, env=only)

            yield Path(root), inside
        finally:
            run("buildah", "rm", name, env=env)

    return opened


@pytest.mark.parametrize(
    ("name", "argv", "says"),
    [
        ("python311", ("python3", "-c", "import json, ssl, sqlite3, lzma; print(1)"), "1"),
        ("python311", ("python3", "-c", "import sys; print(sys.version[:4])"), "3.11"),
        ("node20", ("node", "-e", "console.log(process.version.slice(0, 3))"), "v20"),
        ("node20-ffmpeg", ("sh", "-c", f"{FFMPEG} && {PROBE}"), "1.000000"),
        ("node20-ffmpeg", ("python3", "-c", "import json, ssl; print(1)"), "1"),
        ("node20-sharp", ("node", "-e", SHARP), "PNG"),
        ("node20-puppeteer", ("node", "-e", PUPPETEER), "drawn"),
    ],
)
def test_the_programs_of_a_runtime_work_for_the_user_of_handlers(enter, name, argv, says):
    with enter(name) as (_, run):
        assert run(*argv) == says
        assert run("id", "-u") == "1000"


@pytest.mark.parametrize("name", RUN)
def test_nothing_of_the_machine_that_built_it_is_in_an_image(enter, name):
    with enter(name) as (root, _):
        left = [str(path) for pattern in EMPTIED for path in root.glob(pattern)]
        assert left == []
        assert (root / "etc/resolv.conf").read_bytes() == b""
        assert (root / "etc/hostname").read_bytes() == b""
        assert not list(root.glob("**/.npmrc"))
        assert not list(root.glob("etc/apt/apt.conf.d/*proxy*"))
        assert [path.name for path in (root / "etc/apt").glob("sources.list.d/*")] == []


@pytest.mark.parametrize("name", ["python311", "node20-ffmpeg"])
def test_bytecode_is_taken_without_looking_at_times(enter, name):
    """PEP 552: flags 1 are hash-based and unchecked. A commit sets all times, so no other fits."""
    with enter(name) as (root, _):
        compiled = list((root / "usr/lib/python3.11").rglob("__pycache__/*.pyc"))
        assert len(compiled) > 500
        checked = [str(one) for one in compiled if one.read_bytes()[4:8] != b"\1\0\0\0"]
        assert checked == []


@pytest.mark.parametrize("name", RUN)
def test_an_image_tells_the_versions_of_all_it_is_made_of(shared, name):
    labels = records.made_by([shared], runtime_recipe(name, HERE / "agent")).labels
    versions = json.loads(labels["flowmonkey.versions"])
    assert "libc6" in versions["debian"]
    assert set(RUNTIMES[name].debian) <= set(versions["debian"])
    if name.startswith("node20"):
        assert next(iter(versions["node"].values())).startswith("20.")
    for package in RUNTIMES[name].npm:
        known, _, version = package.rpartition("@")
        assert versions["npm"][known] == version
    assert labels["flowmonkey.languages"] == ",".join(RUNTIMES[name].languages)


def test_images_are_stored_once_what_they_share(shared):
    """All stand on the base; three of them on node20."""
    found = {name: records.made_by([shared], digest(plan(name))) for name in RUNTIMES}
    sizes = {name: image.size_bytes for name, image in found.items()}
    for name, one in RUNTIMES.items():
        above = sizes[one.parent] if one.parent else 0
        assert sizes[name] == above + found[name].own_bytes
