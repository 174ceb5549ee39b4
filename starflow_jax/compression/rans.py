"""An entropy coder that is a stack: asymmetric numeral systems (Duda, arXiv 1311.2540), with a state of 56 bits.

What was pushed last is popped first. A symbol with the frequency f among 2^k takes k - log2 f bits when it is pushed,
and a symbol that is *popped* from bits of other data is distributed by its frequencies and takes bits away: "bits
back".

The state s lies in [2^40, 2^56) and is renormalised by words of 16 bits, with k at most 24. For a symbol that covers
start .. start + f - 1 of 2^k,

    push: s <- (s // f) 2^k + (s mod f) + start,    pop: the inverse, where s mod 2^k says which symbol it is.

Since k <= 40, pushing and popping are exact inverses of each other in every state, renormalisation included, and
rounding s // f costs less than 2^-16 of a bit.

Where a pop of the encoder needs more words than there are, further ones come from a fixed pseudo-random sequence. Both
sides know it, so such words are in no file: they are the initial bits, and the only loss of the method. A decoder
retraces the states of the encoder in reverse and therefore never needs such a word.
"""

from __future__ import annotations

from collections.abc import Sequence

PRECISION = 24  # k of symbols whose frequencies are not powers of two
_WORD = 16
_LOW = 1 << 40  # the smallest state
_HEADROOM = 40 + _WORD
_MASK = (1 << _WORD) - 1
_SEED = 0x9E3779B9


class AnsStack:
    """A stack of symbols. Integers are unbounded in Python, so no operation overflows.

    Args:
      words: words of 16 bits that lie at the bottom, in the order in which they were pushed.
      state: in [2^40, 2^56).
      borrows: whether words below the bottom are taken from the fixed sequence. Otherwise a pop of more than there is
        raises ValueError, so that the work for a damaged stream is bounded by its length.
    """

    def __init__(self, words: Sequence[int] = (), state: int = _LOW, *, borrows: bool = True):
        self._words = list(words)
        self._state = state
        self._borrows = borrows
        self._borrowed = 0

    @classmethod
    def from_bytes(cls, data: bytes) -> AnsStack:
        """The stack that `to_bytes` wrote, which does not borrow.

        Raises:
          ValueError: the bytes are none of a stack.
        """
        if len(data) < 7 or len(data) % 2 == 0:
            raise ValueError(f"a coded stream must have 7 bytes or 7 and a multiple of 2, got {len(data)}")
        state = int.from_bytes(data[:7], "big")
        if state < _LOW:
            raise ValueError("a coded stream must begin with a state of at least 2^40")
        words = [int.from_bytes(data[i : i + 2], "big") for i in range(len(data) - 2, 6, -2)]
        return cls(words, state, borrows=False)

    def to_bytes(self) -> bytes:
        """The state in 7 bytes, then the words from the top of the stack down, so in the order of reading."""
        words = b"".join(word.to_bytes(2, "big") for word in reversed(self._words))
        return self._state.to_bytes(7, "big") + words

    @property
    def bits(self) -> int:
        """Bits of the words and of the state."""
        return len(self._words) * _WORD + self._state.bit_length()

    @property
    def initial_bits(self) -> int:
        """Bits that were taken from the fixed sequence below the bottom."""
        return self._borrowed * _WORD

    def restored(self, words: Sequence[int]) -> bool:
        """Whether the stack is back where it began with `words`, below which are those that the writer borrowed."""
        borrowed = len(self._words) - len(words)
        if borrowed < 0 or self._state != _LOW or self._borrowed:
            return False
        return self._words[borrowed:] == list(words) and all(
            word == _fixed_word(borrowed - 1 - index) for index, word in enumerate(self._words[:borrowed])
        )

    @property
    def words(self) -> list[int]:
        """The words, the lowest first."""
        return list(self._words)

    def push(self, start: int, frequency: int, precision: int = PRECISION) -> None:
        """Pushes the symbol that covers start .. start + frequency - 1 of 2^precision."""
        state, limit = self._state, frequency << (_HEADROOM - precision)
        while state >= limit:
            self._words.append(state & _MASK)
            state >>= _WORD
        quotient, remainder = divmod(state, frequency)
        self._state = (quotient << precision) + remainder + start

    def slot(self, precision: int = PRECISION) -> int:
        """The position in 0 .. 2^precision - 1 that the symbol on top covers."""
        return self._state & ((1 << precision) - 1)

    def drop(self, start: int, frequency: int, precision: int = PRECISION) -> None:
        """Removes the symbol on top, which covers start .. start + frequency - 1 and the present `slot`."""
        state = self._state
        state = frequency * (state >> precision) + (state & ((1 << precision) - 1)) - start
        while state < _LOW:
            state = (state << _WORD) | self._next_word()
        self._state = state

    def push_bits(self, value: int, count: int) -> None:
        """Pushes an integer of `count` bits, 0 to 24, at exactly that cost."""
        self.push(value, 1, count)

    def pop_bits(self, count: int) -> int:
        """Pops an integer of `count` bits."""
        value = self.slot(count)
        self.drop(value, 1, count)
        return value

    def push_uniform(self, value: int, size: int) -> None:
        """Pushes an integer that is uniform in 0 .. size - 1, with a size of at most 2^24."""
        start = -(-(value << PRECISION) // size)
        self.push(start, -(-((value + 1) << PRECISION) // size) - start)

    def pop_uniform(self, size: int) -> int:
        """Pops an integer that is uniform in 0 .. size - 1."""
        # The symbol with ceil(value 2^k / size) <= slot, hence the largest with value <= slot size / 2^k.
        value = (self.slot() * size) >> PRECISION
        start = -(-(value << PRECISION) // size)
        self.drop(start, -(-((value + 1) << PRECISION) // size) - start)
        return value

    def _next_word(self) -> int:
        if self._words:
            return self._words.pop()
        if not self._borrows:
            raise ValueError("the coded stream ends too early: it is damaged")
        self._borrowed += 1
        return _fixed_word(self._borrowed - 1)


def _fixed_word(index: int) -> int:
    """Word `index` below the bottom: bits of a multiplicative hash of the index."""
    mixed = ((index + 1) * _SEED) & 0xFFFFFFFF
    mixed = ((mixed ^ (mixed >> 15)) * 0x85EBCA6B) & 0xFFFFFFFF
    return (mixed ^ (mixed >> 13)) & _MASK
