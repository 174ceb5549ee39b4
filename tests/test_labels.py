"""Tables of labels."""

import numpy as np
import pytest

from starflow_jax.models.text import load_caption_reader, load_text_encoder, read_labels


def test_a_label_is_one_token_and_its_place_a_class(tmp_path):
    path = tmp_path / "animals.vocab"
    path.write_bytes("tabby cat\r\n dog \r\nÉlan\r\n".encode())
    table = read_labels(path)
    assert table.labels == ("tabby cat", "dog", "Élan") and table.index("dog") == 1
    assert load_caption_reader(path, 1) == load_text_encoder(path, 1)[0] == table
    ids = table.ids(["Élan", "", " tabby cat "])
    np.testing.assert_array_equal(ids, [[3], [0], [1]])
    np.testing.assert_array_equal(table.encode({}, ids)[:, 0], [[0, 0, 1], [0, 0, 0], [1, 0, 0]])
    np.testing.assert_array_equal(table.known_ids(["dog", "zebra"]), [[2], [0]])
    assert table.known_ids([]).shape == (0, 1)
    with pytest.raises(ValueError, match=r"must be one of 3 labels, got 'tabby'; did you mean 'tabby cat'\?"):
        table.ids(["tabby"])
    with pytest.raises(ValueError, match="text_length must be 1 for the label table"):
        load_text_encoder(path, 4)


@pytest.mark.parametrize(
    "content, sentence",
    [
        (b"", "labels must not be empty .*line \\[1\\]"),
        (b"cat\n\ndog\n", "labels must not be empty .*line \\[2\\]"),
        (b"cat\ndog\ncat\n", "must all be different, got \\['cat'\\] again"),
        (b"\xff\xfe", "must be text in UTF-8"),
        (None, "does not exist"),
    ],
)
def test_tables_that_are_none_are_refused(tmp_path, content, sentence):
    path = tmp_path / "x.vocab"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        read_labels(path)
