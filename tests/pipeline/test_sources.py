"""Source lists: every format people keep lists in, and every way a row can be wrong."""

from __future__ import annotations

import csv
import gzip
import string
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DvmsetError
from pipeline.sources import UNCATEGORISED, BadRow, Source, canonical_key, read_list, source_id

ID = "dQw4w9WgXcQ"
BV = "BV1xx411c7mD"


def reasons(bad: list[BadRow]) -> dict[int, str]:
    return {row.line: row.reason for row in bad}


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# formats


def test_plain_list_of_ids_and_addresses_with_comments_and_blank_lines(tmp_path: Path) -> None:
    text = f"# the bench\n{ID}\n\n  https://youtu.be/aaaaaaaaaaa  # nice\n\nshort\nyoutu.be/bbbbbbbbbbb\n"
    path = write(tmp_path, "V2M.txt", text)
    sources, bad = read_list(path)
    assert [(s.line, s.key) for s in sources] == [
        (2, f"youtube:{ID}"),
        (4, "youtube:aaaaaaaaaaa"),
        (7, "youtube:bbbbbbbbbbb"),
    ]
    assert reasons(bad) == {6: "'short' is neither an http(s) address nor a video id (YouTube's have 11 characters)"}
    assert {s.file for s in sources} == {str(path)} == {row.file for row in bad}


def test_csv_row_becomes_a_source_with_all_its_fields(tmp_path: Path) -> None:
    text = f"Video-ID , Category,START,End_Time,Licence\n{ID}, Promo ,1:02.5,0:01:20,CC BY 4.0\n"
    path = write(tmp_path, "list.csv", text)
    (source,), bad = read_list(path)
    key, url = f"youtube:{ID}", f"https://www.youtube.com/watch?v={ID}"
    assert not bad
    assert source == Source(
        source_id(key, 62.5, 80.0), key, url, "promo", 62.5, 80.0, "CC BY 4.0", str(path), 2
    )


def test_source_without_category_section_or_licence_says_so(tmp_path: Path) -> None:
    (source,), _ = read_list(write(tmp_path, "list.csv", f"url,category,start,end,license\n{ID},,,,\n"))
    assert (source.category, source.start_s, source.end_s, source.license) == (UNCATEGORISED, None, None, "")


@pytest.mark.parametrize("column", ["url", "URL", "Link", "id", "Video ID", "youtube_id", "YouTube-URL", "ytid"])
def test_address_column_is_found_by_its_usual_names(tmp_path: Path, column: str) -> None:
    (source,), bad = read_list(write(tmp_path, "list.csv", f"index,{column}\n1,{ID}\n"))
    assert (source.key, bad) == (f"youtube:{ID}", [])


def test_an_address_is_preferred_to_a_running_number_called_id(tmp_path: Path) -> None:
    (source,), bad = read_list(write(tmp_path, "list.csv", f"id,youtube_url\n17,https://youtu.be/{ID}\n"))
    assert (source.key, bad) == (f"youtube:{ID}", [])


def test_table_parted_by_tabs_is_read_whatever_its_suffix_says(tmp_path: Path) -> None:
    text = f'index\tyoutube_url\ttitle\n1\thttps://youtu.be/{ID}\t"Heroes" live\n2\t"{ID[::-1]}"\tb\n'
    for name in ("SymMV.csv", "list.tsv"):
        sources, bad = read_list(write(tmp_path, name, text))
        assert [s.key for s in sources] == [f"youtube:{ID}", f"youtube:{ID[::-1]}"]
        assert not bad


def test_table_parted_by_semicolons_is_read(tmp_path: Path) -> None:
    (source,), _ = read_list(write(tmp_path, "list.csv", f"url;category\n{ID};compilation\n"))
    assert source.category == "compilation"


def test_csv_lines_are_true_where_quoted_cells_hold_line_breaks(tmp_path: Path) -> None:
    text = f'title,url\r\n"two\r\nlines",{ID}\r\nx,bad\r\n"three\r\n\r\nlines",aaaaaaaaaaa\r\n\r\ny,worse\r\n'
    sources, bad = read_list(write(tmp_path, "list.csv", text))
    assert [(s.line, s.key) for s in sources] == [(2, f"youtube:{ID}"), (5, "youtube:aaaaaaaaaaa")]
    assert sorted(reasons(bad)) == [4, 9]


@pytest.mark.parametrize("broken", ['"never closed,aaaaaaaaaaa', '"a"b,aaaaaaaaaaa'])
def test_broken_quotes_cost_their_own_row_only(tmp_path: Path, broken: str) -> None:
    text = f'title,url\nfine,{ID}\n{broken}\nfine too,bbbbbbbbbbb\n"quoted",ccccccccccc\n'
    sources, bad = read_list(write(tmp_path, "list.csv", text))
    assert [(s.line, s.key[-1]) for s in sources] == [(2, "Q"), (4, "b"), (5, "c")]
    assert reasons(bad) == {3: "the quotes of this row don't pair up"}


def test_csv_with_more_cells_than_columns_is_reported(tmp_path: Path) -> None:
    _, bad = read_list(write(tmp_path, "list.csv", f"url,category\n{ID},promo,1,2\n"))
    assert reasons(bad) == {2: "4 cells under 2 columns"}


def test_jsonl_takes_objects_and_bare_addresses_and_reports_the_rest(tmp_path: Path) -> None:
    text = f"""\ufeff{{"url": "{ID}", "start": 3, "end": 4.5, "category": null}}

"https://youtu.be/aaaaaaaaaaa"
{{"url": }}
[1, 2]
{{"title": "no address here"}}
{{"URL": ["a", "b"]}}
"""
    sources, bad = read_list(write(tmp_path, "list.jsonl", text))
    assert [(s.line, s.key, s.start_s, s.end_s) for s in sources] == [
        (1, f"youtube:{ID}", 3.0, 4.5),
        (3, "youtube:aaaaaaaaaaa", None, None),
    ]
    assert reasons(bad) == {
        4: "not JSON: Expecting value at column 9",
        5: "neither a JSON object nor an address in quotes",
        6: "no address",
        7: "its url is no text: ['a', 'b']",
    }


def test_parquet_rows_are_numbered_from_one(tmp_path: Path) -> None:
    table = pa.table(
        {
            "Video_ID": [ID, "nope", None, "aaaaaaaaaaa"],
            "start": pa.array([None, 1.0, 2.0, float("nan")], pa.float64()),
            "features": [[1.0], [2.0], [3.0], [4.0]],
            "category": ["promo", "promo", "promo", "trailer"],
        }
    )
    pq.write_table(table, tmp_path / "list.parquet")
    sources, bad = read_list(tmp_path / "list.parquet")
    assert [(s.line, s.key, s.start_s, s.category) for s in sources] == [
        (1, f"youtube:{ID}", None, "promo"),
        (4, "youtube:aaaaaaaaaaa", None, "trailer"),
    ]
    assert sorted(reasons(bad)) == [2, 3]


@pytest.mark.parametrize("name", ["list.csv.gz", "list.txt.gz"])
def test_text_lists_may_be_gzipped(tmp_path: Path, name: str) -> None:
    text = f"url\n{ID}\n" if "csv" in name else f"{ID}\n"
    (source,), _ = read_list(write(tmp_path, name, gzip.compress(text.encode())))
    assert source.key == f"youtube:{ID}"


def test_bom_and_all_line_ends_are_fine(tmp_path: Path) -> None:
    for end in ("\n", "\r\n", "\r"):
        text = f"\ufeffurl{end}{ID}{end}bad{end}"
        (source,), bad = read_list(write(tmp_path, "list.csv", text))
        assert (source.line, sorted(reasons(bad))) == (2, [3])


# files that can't be used


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.csv", "a,b\n1,2\n", r"no column of addresses \(its columns: a, b\)"),
        ("list.csv", "", "the file is empty"),
        ("list.csv", f"https://youtu.be/{ID}\n", "no column of addresses"),
        ("list.jsonl", '{"a": 1}\n{"b": 2}\n', r"no column of addresses \(its columns: a, b\)"),
        ("list.csv", "url\n".encode("utf-16"), "UTF-16"),
        ("list.csv", "url\n".encode("utf-16-le"), "UTF-16 or binary"),
        ("list.csv", b"url,title\n" + ID.encode() + b",caf\xe9\n", "line 2 holds a byte of another encoding"),
        ("list.parquet", b"PAR1 not really", "as Parquet"),
        ("list.csv.gz", b"no gzip", "Can't read the source list"),
        ("list.xlsx", b"PK", ".xlsx is not one of its formats"),
    ],
)
def test_unusable_file_is_named_with_a_hint(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(DvmsetError, match=message) as raised:
        read_list(path)
    assert str(path) in raised.value.message
    assert raised.value.hint


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.csv", tmp_path / "gone.parquet", tmp_path):
        with pytest.raises(DvmsetError, match=path.name):
            read_list(path)


# rows that can't be used


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("file:///etc/passwd", "file: addresses are refused"),
        ("ftp://example.com/v.mp4", "ftp: addresses are refused"),
        ("javascript:alert(1)", "javascript: addresses are refused"),
        ("/home/me/v.mp4", "neither an http"),
        ("C:\\v.mp4", "neither an http"),
        ("video.mp4", "neither an http"),
        ("http://", "no valid host name"),
        ("http://ex ample.com/", "no valid host name"),
        ("http://[::1/v.mp4", "no valid address"),
        ("http://example.com:99999/", "no valid address"),
        ("http://me:secret@example.com/v.mp4", "user name or password"),
        ("http://example.com/a\x07b", "holds characters that are no text"),
        ("https://www.youtube.com/playlist?list=PL123", "a playlist or a channel"),
        ("https://www.youtube.com/@somebody", "a playlist or a channel"),
        ("https://www.youtube.com/embed/videoseries?list=PL1", "a playlist or a channel"),
        ("https://www.youtube.com/embed/live_stream?channel=UC1", "without a video id"),
        ("https://www.youtube.com/watch?v=tooshort", "without a video id"),
        ("https://youtu.be/", "without a video id"),
    ],
)
def test_address_that_is_no_video_is_refused_with_a_reason(tmp_path: Path, address: str, reason: str) -> None:
    sources, bad = read_list(write(tmp_path, "list.tsv", f"url\n{address}\n"))
    assert not sources
    assert reason in bad[0].reason


@pytest.mark.parametrize(
    ("start", "end", "reason"),
    [
        ("soon", "", "its start, 'soon', is neither seconds nor h:mm:ss"),
        ("-1", "", "its start, '-1', is neither"),
        ("nan", "", "its start, 'nan', is neither"),
        ("1e3", "", "its start, '1e3', is neither"),
        ("", "1:75", "its end, '1:75', is neither"),
        ("", "1:99:00", "its end, '1:99:00', is neither"),
        ("", "9999999", "its end, '9999999', is neither"),
        ("10", "10", "its end, 10 s, is not after its start, 10 s"),
        ("0:20", "12.5", "its end, 12.5 s, is not after its start, 20 s"),
        ("", "0", "its end, 0 s, is not after its start, 0 s"),
    ],
)
def test_section_that_makes_no_sense_is_refused(tmp_path: Path, start: str, end: str, reason: str) -> None:
    sources, bad = read_list(write(tmp_path, "list.csv", f"url,start,end\n{ID},{start},{end}\n"))
    assert not sources
    assert reason in bad[0].reason


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("12", 12.0), ("12.3456", 12.346), (" .5 ", 0.5), ("1:02", 62.0), ("90:00", 5400.0), ("1:02:03.25", 3723.25)],
)
def test_times_are_seconds_or_clock_times(tmp_path: Path, text: str, seconds: float) -> None:
    (source,), _ = read_list(write(tmp_path, "list.csv", f"url,start\n{ID},{text}\n"))
    assert source.start_s == seconds


def test_second_row_of_the_same_source_names_the_first(tmp_path: Path) -> None:
    text = f"url,start,end\n{ID},,\nhttps://youtu.be/{ID}?t=3,,\n{ID},0,\n{ID},5,9\n{ID},0:05,0:09.0\n"
    sources, bad = read_list(write(tmp_path, "list.csv", text))
    assert [(s.line, s.start_s, s.end_s) for s in sources] == [(2, None, None), (5, 5.0, 9.0)]
    assert reasons(bad) == {3: "same source as line 2", 4: "same source as line 2", 6: "same source as line 5"}


def test_category_is_any_short_text(tmp_path: Path) -> None:
    text = f"url,category\n{ID},  Movie   Trailer \naaaaaaaaaaa,{'x' * 41}\n"
    (source,), bad = read_list(write(tmp_path, "list.csv", text))
    assert source.category == "movie trailer"
    assert reasons(bad) == {3: "its category has more than 40 characters"}


# identity


@pytest.mark.parametrize(
    "address",
    [
        ID,
        f"youtube:{ID}",
        f"https://www.youtube.com/watch?v={ID}",
        f"http://youtube.com/watch?feature=share&v={ID}&list=PL1&index=3&t=42s#top",
        f"https://m.youtube.com/watch?v={ID}",
        f"https://music.youtube.com/watch?v={ID}&si=abc",
        f"https://youtu.be/{ID}?si=abc&t=1",
        f"https://www.youtube.com/shorts/{ID}?feature=share",
        f"https://www.youtube.com/embed/{ID}?autoplay=1",
        f"https://www.youtube-nocookie.com/embed/{ID}",
        f"https://www.youtube.com/live/{ID}",
        f"https://WWW.YouTube.com:443/watch?v={ID}",
        f"www.youtube.com/watch?v={ID}",
        f"  youtu.be/{ID} ",
    ],
)
def test_every_form_of_a_youtube_address_is_one_key(address: str) -> None:
    assert canonical_key(address) == f"youtube:{ID}"


@pytest.mark.parametrize(
    ("address", "key"),
    [
        (BV, f"bilibili:{BV}"),
        (f"bv{BV[2:]}", f"bilibili:{BV}"),
        (f"https://www.bilibili.com/video/{BV}/?spm_id_from=333&vd_source=1", f"bilibili:{BV}"),
        (f"https://m.bilibili.com/video/{BV}?p=1", f"bilibili:{BV}"),
        (f"https://www.bilibili.com/video/{BV}?p=2&t=3", f"bilibili:{BV}?p=2"),
        (f"https://player.bilibili.com/player.html?bvid={BV}&page=3", f"bilibili:{BV}?p=3"),
        (f"bilibili:{BV}?p=2", f"bilibili:{BV}?p=2"),
    ],
)
def test_bilibili_addresses_keep_their_part(address: str, key: str) -> None:
    assert canonical_key(address) == key


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("HTTP://Example.COM:80", "http://example.com/"),
        ("https://example.com:443/A/b.mp4#t=3", "https://example.com/A/b.mp4"),
        ("https://example.com:8443/v", "https://example.com:8443/v"),
        ("https://example.com/v?b=2&a=1&b=1&utm_source=x&fbclid=y", "https://example.com/v?a=1&b=2&b=1"),
        ("https://example.com/%7euser/%e2%82%ac x?q=%41%zz", "https://example.com/~user/%E2%82%AC%20x?q=A%25zz"),
        ("https://bücher.example./ü", "https://xn--bcher-kva.example/%C3%BC"),
        ("http://[2001:DB8::1]:80/v", "http://[2001:db8::1]/v"),
        ("http://127.0.0.1:8000/v.mp4", "http://127.0.0.1:8000/v.mp4"),
    ],
)
def test_other_addresses_are_normalised(address: str, key: str) -> None:
    assert canonical_key(address) == key


def test_url_to_fetch_keeps_the_order_of_its_query(tmp_path: Path) -> None:
    (source,), _ = read_list(write(tmp_path, "list.txt", "https://example.com/v?b=2&a=1&utm_source=x#frag\n"))
    assert source.url == "https://example.com/v?b=2&a=1&utm_source=x"


def test_source_ids_are_pinned() -> None:
    # a change here orphans every ledger and release that exists
    assert source_id(f"youtube:{ID}") == "d165de6b3810e469"
    assert source_id(f"youtube:{ID}", 1.5, None) == "f87139136d09d37d"
    assert source_id(f"youtube:{ID}", 0.0, 20.0) == source_id(f"youtube:{ID}", None, 20.0) == "ec4c9fadbd059883"


url_text = st.text(string.ascii_letters + string.digits + "%/?&=#+;:@!~._- éß€", max_size=30)
urls = st.builds(
    lambda scheme, host, port, rest: f"{scheme}://{host}{port}/{rest}",
    st.sampled_from(["http", "HTTPS", "https"]),
    st.sampled_from(["example.com", "Example.ORG.", "a-b.c_d.net", "[::1]", "10.0.0.1", "bücher.de"]),
    st.sampled_from(["", ":80", ":443", ":8080"]),
    url_text,
)


@given(urls)
def test_a_key_is_its_own_key(url: str) -> None:
    key = canonical_key(url)
    assert canonical_key(key) == key
    assert key.isascii()
    assert "#" not in key


@given(st.text(max_size=60))
def test_any_text_gives_a_key_or_a_reason(text: str) -> None:
    try:
        key = canonical_key(text)
    except DvmsetError as error:
        assert error.message
    else:
        assert canonical_key(key) == key


cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
addresses = st.sampled_from([ID, f"https://youtu.be/{ID}", BV, "", "nope", "http://h.example/v"])
table = st.lists(st.tuples(cells, addresses, cells, cells))


@given(rows=table)
def test_every_row_is_a_source_or_a_reason_and_sections_run_forward(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, ...]]
) -> None:
    path = tmp_path_factory.mktemp("lists") / "list.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["title", "url", "start", "end"])
        writer.writerows(rows)
    sources, bad = read_list(path)
    wanted = [row for row in rows if any(cell.strip() for cell in row)]
    assert len(sources) + len(bad) == len(wanted)
    assert len({s.source_id for s in sources}) == len(sources)
    for source in sources:
        assert source.end_s is None or (source.start_s or 0) < source.end_s
        assert source.source_id == source_id(source.key, source.start_s, source.end_s)


@given(st.floats(0, 1e5), st.floats(0.001, 1e5))
def test_id_of_a_section_depends_on_whole_milliseconds_only(start: float, seconds: float) -> None:
    exact = source_id("youtube:x", round(start, 3), round(start + seconds, 3))
    assert source_id("youtube:x", round(start, 3) + 1e-5, round(start + seconds, 3) + 1e-5) == exact
    assert source_id("youtube:x", round(start, 3) + 1, round(start + seconds, 3) + 1) != exact


def test_reading_a_text_list_loads_no_table_library(tmp_path: Path) -> None:
    path = write(tmp_path, "list.csv", f"url\n{ID}\n")
    code = f"""
import sys
from pipeline.sources import read_list
read_list({str(path)!r})
print({{"pyarrow", "pandas", "torch", "yt_dlp"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
