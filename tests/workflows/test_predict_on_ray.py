"""Ray Data on two nodes of this machine: the table of one process, from files, shards and an object store."""

import subprocess
import sys
import tarfile

import numpy as np
import pytest

import exitwise as ew
from exitwise import OnnxRunner
from exitwise.deploy.split import entered, stages_tried
from exitwise.deploy.states import described
from exitwise.errors import UserError
from flowers import pngs

COUNT = 300


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images, of which two are broken."""
    folder = tmp_path_factory.mktemp("photos")
    for i, file in enumerate(pngs(COUNT, seed=8)):
        (folder / f"{i:03}.png").write_bytes(b"" if i in (7, 270) else file)
    return folder


@pytest.fixture(scope="module")
def two_nodes():
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 2, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    cluster.add_node(**node)
    ray.init(cluster.address, log_to_driver=False)
    assert len([each for each in ray.nodes() if each["Alive"]]) == 2
    yield
    ray.shutdown()
    cluster.shutdown()


def table_of(folder):
    parquet = pytest.importorskip("pyarrow.parquet")
    return [row for part in sorted(folder.glob("*.parquet")) for row in parquet.read_table(part).to_pylist()]


def same(found, wanted):
    assert [row["file"] for row in found] == [row["file"] for row in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one == {
            name: pytest.approx(value, abs=1e-5) if isinstance(value, float) else value for name, value in other.items()
        }


@pytest.mark.slow
def test_two_nodes_write_the_table_of_one_process(two_nodes, flowers_bundle, photos, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    ew.predict_to(tmp_path / "one.parquet", flowers_bundle, photos, threads=1, top=2)
    wanted = parquet.read_table(tmp_path / "one.parquet").to_pylist()
    assert {row["exit"] for row in wanted} == {1, 2, 3, None}
    written = ew.predict_to(tmp_path / "two.parquet", flowers_bundle, photos, top=2, engine="ray")
    assert (written.tally.answered, written.tally.unread) == (COUNT - 2, 2)
    same(table_of(tmp_path / "two.parquet"), wanted)
    with pytest.raises(UserError, match="exists; give --overwrite to replace it"):
        ew.predict_to(tmp_path / "two.parquet", flowers_bundle, photos, engine="ray")

    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for file in sorted(photos.iterdir()):
            shard.add(file, file.name)
    ew.predict_to(tmp_path / "three", flowers_bundle, tmp_path / "shard.tar", top=2, engine="ray")
    found = [{**row, "file": row["file"].replace("shard.tar/", "")} for row in table_of(tmp_path / "three")]
    same(found, [{**row, "file": row["file"].replace(str(photos), str(tmp_path))} for row in wanted])

    place = f"file://{tmp_path}/four.csv"
    ew.predict_to(place, flowers_bundle, f"file://{photos}", engine="ray")
    rows = [line for part in (tmp_path / "four.csv").iterdir() for line in part.read_text().splitlines()[1:]]
    assert len(rows) == COUNT
    assert sorted(row.split(",")[0].strip('"').rsplit("/", 1)[1] for row in rows) == [
        f"{i:03}.png" for i in range(COUNT)
    ]

    (tmp_path / "broken.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"expected an image in .*broken.png; could not read it: the file is empty"):
        ew.predict_to(tmp_path / "five", flowers_bundle, tmp_path / "broken.png", engine="ray")
    either = (
        r"^expected an image in .*(007|270).png; could not read it: the file is empty$"  # blocks are read side by side
    )
    with pytest.raises(UserError, match=either):
        ew.predict_to(tmp_path / "five", flowers_bundle, photos, engine="ray", strict=True)
    assert not (tmp_path / "five").exists()


def test_what_cannot_be_done_is_refused(flowers_bundle, photos, tmp_path):
    pytest.importorskip("ray")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("")
    for output, files, said in (
        (tmp_path / "labels.json", photos, "expected a folder that ends in .parquet or .csv or .jsonl; got"),
        (tmp_path / "mine", photos, "mine exists and holds something else"),
        (tmp_path / "labels", ["s3://photos/a", str(photos)], "expected all images in object stores, or all in files"),
        (tmp_path / "labels", "s3://photos/a.tar", "shards are read from files: copy s3://photos/a.tar"),
    ):
        with pytest.raises(UserError, match=said):
            ew.predict_to(output, flowers_bundle, files, engine="ray", overwrite=True)
    with pytest.raises(UserError, match="engine ray is for a bundle"):
        ew.predict_to(tmp_path / "labels", tmp_path, photos, engine="ray")
    with pytest.raises(UserError, match="expected engine as local or ray; got spark"):
        ew.predict_to(tmp_path / "labels.csv", flowers_bundle, photos, engine="spark")
    code = "import sys; sys.modules['ray'] = None; from exitwise.cli import main; main(sys.argv[1:])"
    words = ["predict", flowers_bundle, photos, "--engine", "ray", "--output", tmp_path / "labels"]
    result = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (
        2,
        "exitwise: predicting on Ray needs ray: pip install 'exitwise[ray]'\n",
    )


def test_states_are_bytes_and_back(flowers_bundle):
    on_ray = pytest.importorskip("exitwise.workflows.predict_on_ray")
    runner = OnnxRunner(flowers_bundle, 1)
    images = np.random.default_rng(0).normal(size=(5, 1, 8, 8)).astype(np.float32)
    inside = runner.chain.enter(runner.check_inputs(images))
    for k, before in enumerate([entered(runner), *(each for _, each in stages_tried(runner)[:-1])]):
        back = on_ray.unpacked(on_ray.packed(inside), described(before))
        assert back.arrays.keys() == inside.arrays.keys()
        assert all(np.array_equal(back.arrays[name], array) for name, array in inside.arrays.items())
        _, inside = runner.chain.step(k, inside)
