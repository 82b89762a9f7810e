"""Folders -> squares, manifest, quarantine; every way in which a folder can be wrong."""

import os
import re
import shutil

import pytest
from PIL import Image, ImageDraw

from b4m_pipeline.inputs.folders import Folder, PicturesError, check_folders, list_concept_folders, list_folders, load_picture
from b4m_pipeline.inputs.params import ConceptParams, CounterpartParams, IngestionParams
from tests.conftest import PLAIN_INGESTION


def draw(seed, size=48):
    """A picture that differs from those of other seeds."""
    image = Image.new("RGB", (size, size), "white")
    pen = ImageDraw.Draw(image)
    for index in range(4):
        x, y = (seed * 17 + index * 29) % size, (seed * 31 + index * 13) % size
        pen.ellipse((x - 9, y - 9, x + 9, y + 9), fill=(seed * 50 % 256, index * 60, 90))
    return image


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "toys"
    path.mkdir()
    for index in range(3):
        draw(index).save(path / f"toy {index}.png")
    return path


def content(path, **fields):
    return Folder(**{"role": "content", "name": "toy", "token": "snq", "noun": "toy", "path": path,
                     "parameter": "content.path", **fields})  # fmt: skip


def check(*folders, **params):
    return check_folders(folders, 16, IngestionParams(**PLAIN_INGESTION | params))


def test_manifest_says_what_there_is(folder):
    (folder / "toy 1.txt").write_text("\ufeff on a\n red  sofa ", encoding="utf-8")
    (folder / "attribution.csv").write_text("file,licence,source\ntoy 2.png,CC0-1.0,the attic\n")
    checked = check(content(folder, licence="MIT", source="me"))
    table = checked.manifest.set_index("file")
    assert list(table.picture) == ["content/toy/toy-0", "content/toy/toy-1", "content/toy/toy-2"]
    assert set(checked.squares) == set(table.picture)
    assert all(square.size == (16, 16) and square.mode == "RGB" for square in checked.squares.values())
    assert list(table.sidecar) == ["", "on a red sofa", ""]
    assert list(table.licence) == ["MIT", "MIT", "CC0-1.0"]
    assert table.source["toy 2.png"] == "the attic"
    assert (table.width == 48).all()
    assert (table.near_duplicate_of == "").all()
    assert checked.quarantine.empty
    assert list(checked.quarantine.columns) == ["role", "concept", "file", "reason"]


def test_bad_files_are_put_aside_with_a_reason(folder, caplog):
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n, and then nothing")
    (folder / "photo.HEIC").write_bytes(b"x")
    (folder / "drawing.psd").write_bytes(b"8BPS")
    (folder / ".hidden.png").write_bytes(b"x")
    (folder / "notes.md").write_text("no picture")
    (folder / "folder.png").mkdir()
    (folder / "toy 0.txt").write_bytes("caf\xe9".encode("latin-1"))
    (folder / "toy 1.txt").write_text(" \n")
    checked = check(content(folder))
    reasons = dict(zip(checked.quarantine.file, checked.quarantine.reason, strict=True))
    assert set(reasons) == {"broken.png", "photo.HEIC", "drawing.psd", "notes.md", "toy 0.txt", "toy 1.txt"}
    assert "convert" in reasons["drawing.psd"] and "known" in reasons["notes.md"]
    assert "UTF-8" in reasons["toy 0.txt"]
    assert "empty" in reasons["toy 1.txt"]
    assert len(checked.manifest) == 3
    assert "broken.png is left out" in caplog.text


def test_links_that_lead_out_are_refused(folder, tmp_path):
    outside = tmp_path / "secret"
    outside.mkdir()
    draw(7).save(outside / "secret.png")
    (outside / "secret.txt").write_text("password")
    (folder / "link.png").symlink_to(outside / "secret.png")
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    (folder / "circle.png").symlink_to(folder / "circle.png")
    (folder / "elsewhere").symlink_to(outside)
    (folder / "toy 0.txt").symlink_to(outside / "secret.txt")
    (folder / "again.png").symlink_to(folder / "toy 0.png")  # inside: fine
    checked = check(content(folder))
    reasons = dict(zip(checked.quarantine.file, checked.quarantine.reason, strict=True))
    assert set(reasons) == {"link.png", "dangling.png", "circle.png", "elsewhere", "toy 0.txt"}
    assert "leads out" in reasons["link.png"]
    assert "leads out" in reasons["toy 0.txt"]
    assert "again.png" in list(checked.manifest.file)
    assert not checked.manifest.sidecar.str.contains("password").any()


def test_a_folder_may_itself_be_a_link(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert len(check(content(tmp_path / "link")).manifest) == 3


def test_keys_are_distinct_and_safe(tmp_path):
    (tmp_path / "more").mkdir()
    names = ["a.png", "a.jpg", "A.bmp", "more/a.png", "b\\..\\c.png", "100% [new]?.png", "日本.png",
             "ü.png", "x" * 240 + ".png", "\n.png"]  # fmt: skip
    for index, name in enumerate(names):
        draw(index).save(tmp_path / name)
    os.link(os.path.join(tmp_path, "a.png"), os.path.join(os.fsencode(tmp_path), b"\xff.png"))  # no UTF-8
    table = check(content(tmp_path)).manifest
    stems = [key.removeprefix("content/toy/") for key in table.picture]
    assert len({stem.casefold() for stem in stems}) == len(names) + 1
    assert all(re.fullmatch("[A-Za-z0-9_-]{1,90}", stem) for stem in stems)
    assert {"more/a.png", "日本.png", "\\xff.png", "\\n.png"} <= set(table.file)
    table.to_parquet(tmp_path / "manifest.parquet")


def test_near_duplicates_are_reported_not_dropped(folder):
    shutil.copy(folder / "toy 0.png", folder / "toy 3.png")
    draw(1).resize((90, 90)).save(folder / "toy 4.jpg")
    table = check(content(folder)).manifest.set_index("file")
    assert len(table) == 5
    assert table.near_duplicate_of["toy 3.png"] == "content/toy/toy-0"
    assert table.near_duplicate_of["toy 4.jpg"] == "content/toy/toy-1"
    assert (table.near_duplicate_of != "").sum() == 2


def test_near_duplicates_are_looked_for_in_one_concept_only(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    other = content(tmp_path / "copy", role="style", name="ink", parameter="style.path")
    assert (check(content(folder), other).manifest.near_duplicate_of == "").all()


def test_wrong_folders_are_named_before_anything_is_read(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("b4m_pipeline.inputs.folders.read_square", lambda *_: pytest.fail("a picture was read"))
    with pytest.raises(PicturesError, match=r"style 'ink' \(style.path\): there is no folder gone \(that is .*/gone\)"):
        check(content(folder), content(tmp_path.relative_to(tmp_path) / "gone", role="style", name="ink",
                                       parameter="style.path"))  # fmt: skip
    with pytest.raises(PicturesError, match="is a file. Give the folder"):
        check(content(folder / "toy 0.png"))


def test_empty_and_unreadable_folders(tmp_path):
    with pytest.raises(PicturesError, match=r"content 'toy' \(content.path\): .* holds no pictures"):
        check(content(tmp_path))
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(PicturesError, match=r"none of the 1 pictures .*a.png: empty file.*Mend or replace"):
        check(content(tmp_path))


def test_a_malformed_attribution_is_an_error(folder):
    (folder / "attribution.csv").write_text("name,license\ntoy 0.png,MIT\n")
    with pytest.raises(PicturesError, match="expected file, licence, source"):
        check(content(folder))
    (folder / "attribution.csv").write_bytes(b"file,licence,source\ncaf\xe9.png,MIT,me\n")
    with pytest.raises(PicturesError, match="cannot be read as CSV in UTF-8"):
        check(content(folder))


def concept(name, token, path=None):
    return ConceptParams(name=name, path=path or name, token=token)


def test_folders_of_a_run(tmp_path):
    styles = [concept("oil", "s1"), concept("ink", "s2")]
    counterparts = CounterpartParams(contents=[concept("dog", "c1")], styles=styles)
    folders = list_folders(concept("toy", "snq"), concept("wood", "w@z"), counterparts, "both")
    assert [(folder.role, folder.name, folder.parameter) for folder in folders] == [
        ("content", "toy", "content.path"),
        ("style", "wood", "style.path"),
        ("counterpart_content", "dog", "counterparts.contents[0].path"),
        ("counterpart_style", "oil", "counterparts.styles[0].path"),
        ("counterpart_style", "ink", "counterparts.styles[1].path"),
        ("union", "toy-wood", "make.union_path"),
    ]


@pytest.mark.parametrize(
    ("style", "counterpart", "what"),
    [
        (concept("wood", "SNQ"), concept("oil", "s1"), "token"),
        (concept("Toy", "w@z", "wood"), concept("oil", "s1"), "name"),
        (concept("wood", "w@z"), concept("oil", "w@z"), "token"),
        (concept("wood", "w@z"), concept("toy", "s1", "oil"), "name"),
    ],
)
def test_concepts_must_differ(style, counterpart, what):
    with pytest.raises(PicturesError, match=f"have the same {what}"):
        list_folders(concept("toy", "snq"), style, CounterpartParams(contents=[], styles=[counterpart]))


@pytest.mark.parametrize(
    ("style", "union"), [("toy", None), ("toy/styles/wood", None), (".", None), ("wood", "toy"), ("wood", "toy/both")]
)
def test_a_folder_in_another_one_would_be_trained_on_as_both(style, union, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PicturesError, match="each would be trained on as both"):
        list_folders(concept("toy", "snq"), concept("wood", "w@z", style), CounterpartParams(contents=[], styles=[]), union)


def test_a_concept_by_itself_and_its_counterparts_must_differ_too():
    partners = [concept("oil", "s1", "a/oil"), concept("oil", "s2", "b/oil")]
    with pytest.raises(PicturesError, match="have the same name"):
        list_concept_folders("content", concept("toy", "snq"), partners)
    with pytest.raises(PicturesError, match="have the same token"):
        list_concept_folders("content", concept("toy", "snq"), [concept("oil", "snq")])


def test_masks_and_texts_of_no_picture_are_listed(folder):
    for name in ("toy 9.txt", "toy 0.png.txt", "toy 1.TXT", "README.txt", ".note.txt", "toy 8.caption"):
        (folder / name).write_text("in ink style")
    for name in ("toy 2.MASK.PNG", "toi 2.mask.png", "toi 1-masklabel.png"):
        Image.new("L", (48, 48), 255).save(folder / name, format="PNG")
    checked = check(content(folder))
    lost = ["toi 1-masklabel.png", "toi 2.mask.png", "toy 0.png.txt", "toy 8.caption", "toy 9.txt"]
    assert sorted(checked.quarantine.file) == lost
    assert checked.quarantine.reason.str.startswith("belongs to no picture").all() and len(checked.manifest) == 3
    assert list(checked.manifest.sidecar) == ["", "in ink style", ""]  # an ending in capitals is one all the same


def test_text_of_two_bytes_a_letter_is_no_caption(folder):
    (folder / "toy 0.txt").write_bytes("in ink style".encode("utf-16-le"))
    checked = check(content(folder))
    assert checked.quarantine.reason[0].startswith("caption file is not UTF-8") and not checked.manifest.sidecar.any()


@pytest.mark.parametrize(("folder", "name"), [("teapot.v2", "teapot-v2"), ("my cat!", "my-cat"), ("...", "unnamed")])
def test_a_concept_is_named_after_its_folder_as_a_registry_allows(folder, name, tmp_path):
    assert ConceptParams(path=str(tmp_path / folder), token="snq").name == name


@pytest.mark.parametrize("name", ["teapot.v2", "a/b", ".", "a b"])
def test_names_that_no_registry_takes_are_refused(name):
    with pytest.raises(ValueError, match="letters, digits"):
        ConceptParams(path="x", token="snq", name=name)


def test_alpha_and_mask_files_become_masks_cut_like_the_picture(folder):
    cut_out = draw(5).convert("RGBA")
    cut_out.putalpha(Image.new("L", (48, 48), 0))
    cut_out.paste(draw(5).crop((0, 0, 24, 48)), (0, 0, 24, 48))  # the left half is opaque
    cut_out.save(folder / "cut out.png")
    wide = Image.new("L", (96, 48), 0)
    wide.paste(255, (48, 0, 96, 48))  # white on the right; the square in the middle has it from its own middle on
    wide.save(folder / "wide.mask.png")
    draw(7, 96).crop((0, 0, 96, 48)).save(folder / "wide.jpg")
    checked = check(content(folder))
    assert len(checked.manifest) == 5 and not len(checked.quarantine)
    squares = {key.rsplit("/", 1)[1]: square for key, square in checked.squares.items()}
    assert squares["toy-0"].mode == "RGB"
    for name, inside, outside in (("cut-out", (3, 8), (12, 8)), ("wide", (12, 8), (3, 8))):
        alpha = squares[name].getchannel("A")
        assert alpha.getpixel(inside) == 255 and alpha.getpixel(outside) == 0
    assert load_picture(squares["cut-out"]).getpixel((12, 8)) == (255, 255, 255)  # laid on the ground all the same
    assert load_picture(squares["wide"]).mode == "RGB"


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (Image.new("L", (48, 20), 255), "its mask toy 1.mask.png is 48 x 20 pixels, the picture 48 x 48"),
        (Image.new("L", (48, 48), 0), "its mask toy 1.mask.png is black"),
        (None, "its mask toy 1.mask.png: empty file"),
    ],
)
def test_a_picture_with_a_wrong_mask_is_put_aside(folder, mask, reason):
    path = folder / "toy 1.mask.png"
    mask.save(path) if mask else path.write_bytes(b"")
    checked = check(content(folder))
    assert len(checked.manifest) == 2
    assert checked.quarantine.file.tolist() == ["toy 1.png"] and checked.quarantine.reason[0].startswith(reason)


def test_buckets_keep_pictures_shapes_and_masks(folder):
    wide = Image.new("RGB", (96, 48), "red")
    wide.save(folder / "wide.png")
    half = Image.new("L", (96, 48), 0)
    half.paste(255, (0, 0, 48, 48))
    half.save(folder / "wide.mask.png")
    params = IngestionParams(**PLAIN_INGESTION | {"buckets": {"step": 8, "max_ratio": 2.0}})
    own = [Folder("content", "toy", "snq", "toy", folder, "content.path")]
    checked = check_folders(own, 32, params)
    squares = {key.rsplit("/", 1)[1]: square for key, square in checked.squares.items()}
    assert squares["wide"].size == (40, 24) and squares["toy-1"].size == (32, 32)
    alpha = squares["wide"].getchannel("A")
    assert alpha.getpixel((4, 12)) == 255 and alpha.getpixel((35, 12)) == 0
    with pytest.raises(PicturesError, match="step 24 does not divide base_model.resolution 32"):
        check_folders(own, 32, IngestionParams(**PLAIN_INGESTION | {"buckets": {"step": 24}}))


@pytest.mark.parametrize(("resolution", "told"), [(128, True), (512, False)])
def test_pictures_of_a_camera_are_told_of_where_the_base_knows_drawings_alone(tmp_path, caplog, resolution, told):
    exif = Image.Exif()
    exif[271] = "Some maker"
    draw(0).save(tmp_path / "0.jpg", exif=exif)
    draw(1).save(tmp_path / "1.jpg")
    check_folders([content(tmp_path)], resolution, IngestionParams(**PLAIN_INGESTION))
    assert ("1 photographs; a base model of 128 pixels draws icons of them" in caplog.text) == told


def test_pictures_that_are_much_enlarged_are_counted_and_can_be_left_out(folder, caplog):
    draw(7, size=7).save(folder / "tiny.png")
    draw(8, size=8).save(folder / "half.png")
    assert len(check(content(folder)).manifest) == 5
    assert "1 of 5 pictures are enlarged more than twice and will be blurred (one has 7 x 7 pixels for 16)" in caplog.text
    checked = check(content(folder), max_enlargement=2)
    assert checked.quarantine.file.tolist() == ["tiny.png"] and len(checked.manifest) == 4
    assert checked.quarantine.reason[0] == "7 x 7 pixels would be enlarged 2.3 times, more than ingestion.max_enlargement = 2"
    draw(7, size=30).resize((30, 4)).save(folder / "strip.png")
    assert check(content(folder), max_enlargement=1, crop="pad").manifest.file.str.contains("strip").any()


def test_links_may_lead_to_folders_that_are_named_and_to_the_blobs_of_a_snapshot(folder, tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    draw(7).save(store / "7.png")
    (folder / "linked.png").symlink_to(store / "7.png")
    refused = check(content(folder)).quarantine
    assert refused.file.tolist() == ["linked.png"] and str(store) in refused.reason[0] and "links_into" in refused.reason[0]
    assert "linked.png" in list(check(content(folder), links_into=[str(store)]).manifest.file)

    repository = tmp_path / "hub/datasets--me--toys"
    snapshot = repository / "snapshots/0123"
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    draw(8).save(repository / "blobs/abc", format="PNG")
    (repository / "blobs/def").write_text("in ink style")
    (snapshot / "toy.png").symlink_to("../../blobs/abc")
    (snapshot / "toy.txt").symlink_to("../../blobs/def")
    (snapshot / "other.png").symlink_to(store / "7.png")
    checked = check(content(snapshot))
    assert list(checked.manifest.file) == ["toy.png"] and list(checked.manifest.sidecar) == ["in ink style"]
    assert list(checked.quarantine.file) == ["other.png"]


def test_captions_of_a_table_are_read_and_files_beside_pictures_come_first(folder):
    lines = ['{"file_name": "toy 0.png", "text": "in ink style"}', '{"file_name": "toy 1.png", "text": "in oil style"}', "{"]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    (folder / "toy 1.caption").write_text("in neon style")
    checked = check(content(folder))
    assert list(checked.manifest.sidecar) == ["in ink style", "in neon style", ""]
    assert checked.quarantine.values.tolist() == [
        ["content", "toy", "metadata.jsonl", "line 3: is no JSON; its other 2 captions are used"]
    ]


def test_a_folder_without_pictures_says_what_it_has(tmp_path):
    (tmp_path / "film.mp4").write_bytes(b"x")
    with pytest.raises(PicturesError, match=r"holds no pictures .* It has: film.mp4: no picture, and no other file .* \.mp4"):
        check(content(tmp_path))


def test_an_attribution_that_leads_out_is_refused(folder, tmp_path):
    (tmp_path / "secret.csv").write_text("file,licence,source\ntoy 0.png,x,password\n")
    (folder / "attribution.csv").symlink_to(tmp_path / "secret.csv")
    with pytest.raises(PicturesError, match="a link that leads out"):
        check(content(folder))
