"""Episodes and their video files: events that explain every change, and frames that show what the episode says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtvl.data.miniworld import clips
from mtvl.data.miniworld.clips import FAMILIES, FPS, family_episode, vid_name, write_clip
from mtvl.data.miniworld.episode import EVENTS, MOVES, TICK_SECONDS, Actor, Episode, Event, episode_at
from mtvl.data.miniworld.grammar import QUARTERS
from mtvl.data.miniworld.render import RGB, render
from mtvl.data.miniworld.scene import HELD_OUT, LATTICE, PICTURE_PIXELS, SPLITS, Scene, Thing
from mtvl.errors import ConfigError, DataError

decord = pytest.importorskip("decord")
FAMILY_SPLITS = ("train", "val", "test")
HALF = PICTURE_PIXELS // 2


def some(number: int = 150, split: str = "test") -> list[Episode]:
    return [family_episode(3, family, split, i) for family in FAMILIES for i in range(number)]


def cell(thing: Thing) -> int:
    """The quarter of a thing that stands still."""
    return thing.row // (LATTICE // 2) * 2 + thing.col // (LATTICE // 2)


def middle(thing: Thing) -> tuple[float, float]:
    """Where a thing is drawn, in pixels, but for the share of a pixel that all positions lack."""
    side = PICTURE_PIXELS // LATTICE
    return thing.row * side + thing.dy, thing.col * side + thing.dx


# --- episodes ---------------------------------------------------------------------------------------------------------


def test_episodes_are_functions_of_seed_split_and_index() -> None:
    assert episode_at(0, "train", 5) == episode_at(0, "train", 5)
    seen = {
        family_episode(seed, f, split, i) for seed in (0, 1) for f in FAMILIES for split in SPLITS for i in range(20)
    }
    assert len(seen) == 2 * len(FAMILIES) * len(SPLITS) * 20
    with pytest.raises(ConfigError, match="'valid'.*pretrain, test, train, val"):
        episode_at(0, "valid", 0)
    with pytest.raises(ValueError, match="3 events need at least 7 ticks, found 4"):
        episode_at(0, "train", 0, 4, 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_lengths_and_events_are_those_of_the_family(family: str) -> None:
    for i in range(60):
        episode, source = family_episode(0, family, "train", i), FAMILIES[family]
        assert (episode.ticks, len(episode.events)) == (source.ticks, source.num_events)
        assert episode.seconds == source.ticks * TICK_SECONDS
        assert 2 <= len(episode.actors) <= 3
        assert len({a.colour for a in episode.actors}) == len({a.shape for a in episode.actors}) == len(episode.actors)


def test_no_two_objects_stand_in_one_quarter_and_something_is_always_there() -> None:
    for episode in some():
        for tick, places in enumerate(episode.places):
            there = [p for p in places if p >= 0]
            assert there and len(there) == len(set(there)) and set(there) <= set(range(4))
            things = episode.scene(tick).objects
            assert sorted(cell(t) for t in things) == sorted(there)
        assert all(any(places[a] >= 0 for places in episode.places) for a in range(len(episode.actors)))


def test_every_change_is_an_event_and_every_event_a_change() -> None:
    kinds: Counter[str] = Counter()
    for episode in some():
        moments = [event.tick for event in episode.events]
        assert all(b - a >= 2 for a, b in zip(moments, moments[1:], strict=False))  # a quiet tick lies between
        changed = [t for t in range(episode.ticks - 1) if episode.places[t] != episode.places[t + 1]]
        assert changed == moments
        for event in episode.events:
            before, after = episode.places[event.tick], episode.places[event.tick + 1]
            touched = [a for a in range(len(before)) if before[a] != after[a]]
            assert sorted(touched) == sorted(a for a in (event.actor, event.other) if a >= 0)
            check_event(event, before, after)
            kinds[event.kind] += 1
    assert set(kinds) == set(EVENTS) and min(kinds.values()) > 30, kinds


def check_event(event: Event, before: tuple[int, ...], after: tuple[int, ...]) -> None:
    def step(actor: int) -> tuple[int, int]:
        return after[actor] // 2 - before[actor] // 2, after[actor] % 2 - before[actor] % 2

    if event.kind == "move":
        assert step(event.actor) == MOVES[event.direction] and after[event.actor] not in before
    elif event.kind == "push":  # the acting one takes the place of the other, which gives way to a free one beside it
        assert after[event.actor] == before[event.other] and step(event.actor) in MOVES.values()
        assert step(event.other) == MOVES[event.direction] and after[event.other] not in before
    elif event.kind == "swap":
        assert (after[event.actor], after[event.other]) == (before[event.other], before[event.actor])
    elif event.kind == "appear":
        assert before[event.actor] < 0 <= after[event.actor] and after[event.actor] not in before
    else:
        assert event.kind == "vanish" and after[event.actor] < 0 <= before[event.actor]


def test_held_out_compositions_occur_in_test_only() -> None:
    for split in SPLITS:
        pairs = {(a.colour, a.shape) for e in some(100, split) for a in e.actors}
        assert (pairs & HELD_OUT == HELD_OUT) if split == "test" else not pairs & HELD_OUT


def test_between_ticks_objects_are_on_their_way_and_then_there() -> None:
    moved = 0
    for episode in some(60):
        for tick in range(episode.ticks):
            whole = set(episode.scene(tick).objects)
            for share in (0.31, 0.5, 0.69):  # the middle of a tick and what lies quietly around it
                assert set(episode.scene_at((tick + share) * TICK_SECONDS).objects) == whole
        for event in episode.events:
            if event.kind not in ("move", "push"):
                continue
            start, end = event.tick * TICK_SECONDS + 0.75, (event.tick + 1) * TICK_SECONDS + 0.75
            actor = episode.actors[event.actor]
            path = [middle(of(actor, episode.scene_at(start + (end - start) * i / 20))) for i in range(21)]
            ways = np.diff(np.array(path), axis=0)
            target = np.array(path[-1]) - path[0]
            assert np.abs(target).sum() == HALF  # one quarter further, straight
            assert (ways * np.sign(target) >= 0).all() and (ways[:, target == 0] == 0).all()
            assert len(set(path)) > 5
            moved += 1
    assert moved > 30
    still = some(1)[0]
    assert still.scene_at(-1.0) == still.scene_at(0.0) and still.scene_at(99.0).objects == still.scene_at(11.9).objects


def of(actor: Actor, scene: Scene) -> Thing:
    (thing,) = [t for t in scene.objects if (t.colour, t.shape) == (actor.colour, actor.shape)]
    return thing


def test_an_object_that_comes_or_goes_does_so_in_the_middle_of_the_passage() -> None:
    seen: Counter[str] = Counter()
    for episode in some(60):
        for event in episode.events:
            if event.kind in ("appear", "vanish"):
                name = episode.actors[event.actor]
                early, late = (
                    any(
                        (t.colour, t.shape) == (name.colour, name.shape)
                        for t in episode.scene_at(event.seconds + d).objects
                    )
                    for d in (-0.05, 0.05)
                )
                assert (early, late) == ((False, True) if event.kind == "appear" else (True, False))
                seen[event.kind] += 1
    assert min(seen["appear"], seen["vanish"]) > 20


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Episode]:
    folder = tmp_path_factory.mktemp("clips")
    found = {}
    for family in FAMILIES:
        for i in range(4):
            found[folder / f"{family}{i}.mp4"] = family_episode(1, family, "test", i)
    for path, episode in found.items():
        write_clip(episode, path)
    return found


def decoded(path: Path) -> np.ndarray:
    reader = decord.VideoReader(str(path), num_threads=1)
    return reader.get_batch(range(len(reader))).asnumpy().astype(int)


def drawn(scene: Scene) -> np.ndarray:
    return np.asarray(render(scene)).astype(int)


def test_number_rate_and_size_of_frames(written: dict[Path, Episode]) -> None:
    for path, episode in written.items():
        reader = decord.VideoReader(str(path), num_threads=1)
        assert len(reader) == episode.seconds * FPS and reader.get_avg_fps() == FPS
        assert reader.get_frame_timestamp(len(reader) - 1)[1] == episode.seconds
        assert reader[0].shape == (PICTURE_PIXELS, PICTURE_PIXELS, 3)
        keys = reader.get_key_indices()
        assert keys == list(range(0, len(reader), 12)), "a frame is never more than two ticks behind a key frame"


def test_objects_are_seen_in_their_quarters_in_their_colours(written: dict[Path, Episode]) -> None:
    seen = 0
    for path, episode in written.items():
        frames = decoded(path)
        for tick in range(episode.ticks):
            frame = frames[int((tick + 0.5) * TICK_SECONDS * FPS)]
            empty = drawn(Scene((), episode.light, episode.shade, episode.ramp))
            by_place = {p: a for a, p in zip(episode.actors, episode.places[tick], strict=True) if p >= 0}
            for place in range(len(QUARTERS)):
                rows = slice(place // 2 * HALF, place // 2 * HALF + HALF)
                columns = slice(place % 2 * HALF, place % 2 * HALF + HALF)
                marked = np.abs(frame - empty)[rows, columns].max(-1) > 60
                assert (marked.sum() > 40) == (place in by_place), (path.name, tick, QUARTERS[place])
                if place in by_place:
                    assert nearest_colour(frame[rows, columns], by_place[place]) == by_place[place].colour
                    seen += 1
    assert seen > 100


def nearest_colour(quarter: np.ndarray, actor: Actor) -> str:
    """The colour in which drawing this object comes closest to what is seen."""

    def distance(colour: str) -> float:
        thing = Thing(actor.row, actor.col, colour, actor.shape, actor.size, actor.texture, actor.dx, actor.dy)
        return float(np.abs(drawn(Scene((thing,)))[:HALF, :HALF] - quarter).mean())

    return min(RGB, key=distance)


def test_the_codec_changes_little(written: dict[Path, Episode]) -> None:
    """Measured here: 1.4 levels on average, 8.5 inside objects (half the chroma), 1.4 there in brightness alone."""
    everywhere, inside, light = [], [], []
    for path, episode in written.items():
        for i, frame in enumerate(decoded(path)[1::3]):
            whole = drawn(episode.scene_at((3 * i + 1.5) / FPS))
            mask = whole.min(-1) < 150
            everywhere.append(np.abs(frame - whole).mean())
            inside.append(np.abs(frame - whole)[mask].mean())
            light.append(np.abs((frame - whole) @ (0.299, 0.587, 0.114))[mask].mean())
    figures = float(np.mean(everywhere)), float(np.mean(inside)), float(np.mean(light))
    assert 0.01 < figures[0] < 2.0 and figures[1] < 12.0 and figures[2] < 2.0, figures


def test_the_same_episode_gives_the_same_bytes(written: dict[Path, Episode], tmp_path: Path) -> None:
    path, episode = next(iter(written.items()))
    write_clip(episode, tmp_path / "again.mp4")
    assert (tmp_path / "again.mp4").read_bytes() == path.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["again.mp4"]
    head = path.read_bytes()
    assert 0 < head.index(b"moov") < head.index(b"mdat"), "the index stands in front: a reader need not seek to the end"


def test_a_failure_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    episode, calls = some(1)[0], []

    def draw(scene: Scene) -> Image.Image:
        calls.append(scene)
        if len(calls) > 2:
            raise MemoryError("no room for a picture")
        return render(scene)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(clips, "render", draw)
        write_clip(episode, tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(clips, "_ENCODER", "libnothing")
    with pytest.raises(DataError, match="a.mp4: expected PyAV with the encoder libnothing"):
        write_clip(episode, tmp_path / "a.mp4")


def test_another_rate_shows_the_same_at_the_same_time(tmp_path: Path) -> None:
    episode = family_episode(0, "yc2", "train", 0)
    write_clip(episode, tmp_path / "slow.mp4", fps=2)
    frames = decoded(tmp_path / "slow.mp4")
    assert len(frames) == 2 * episode.seconds
    assert np.abs(frames[-1] - drawn(episode.scene(episode.ticks - 1))).mean() < 3.0


def test_names_are_unique_over_splits_and_like_those_of_value() -> None:
    for family in FAMILIES:
        names = [vid_name(family, split, i) for split in FAMILY_SPLITS for i in range(3000)]
        assert len(set(names)) == len(names)
    assert vid_name("tv", "train", 0) == "mini_s01e01_seg01_clip_00"
    assert vid_name("tv", "test", 37) == "mini_s03e02_seg02_clip_07"
    assert vid_name("how2", "val", 3) == "50003"
    assert vid_name("yc2", "train", 58) == "ep0012_3"
