"""Bytes that compress the way real ones do: long seeded "soups" of which files are slices.

A soup is made of sections with a small vocabulary of their own, as a source file or an object file has;
that locality is what a compressor lives on.  Sections and weights were tuned against a tree of kernel and
crate sources and shared libraries: about 4:1 under zstd level 3 for text, less for binaries.

Only `random.Random.random()` and integer or exact float arithmetic are used, so that every Python and
every platform make the same bytes from the same seed.
"""

import struct
from random import Random

SECTION = 24 << 10  # bytes, about the length of a long source file
REPEAT = 0.12  # share of lines that start a repetition of earlier ones
NAMES = 60  # identifiers of one section

_ONSETS = [*"bcdfghklmnprstvw", "st", "tr", "pr", "ch", "th", "fl", "gr"]
_VOWELS = [*"aeio", "ea", "io", "ai"]
_CODAS = [*"rntslmxdp", "rk", "ng"] + [""] * 5

# %i an identifier of the section, %w a plain word, %n a number.
_LINES = [
    "\tif (%i->%i < %i)\n\t\treturn -%i;\n",
    "\t%i = %i(%i, %i);\n",
    "\t%i->%i = %i;\n",
    "\tret = %i(%i, &%i->%i);\n\tif (ret)\n\t\tgoto out_%i;\n",
    "\tfor (i = 0; i < %i->%i; i++) {\n",
    "\t\t%i[i].%i = %n;\n",
    "\t}\n\n",
    "}\n\nstatic int %i(struct %i *%i, unsigned int %i)\n{\n\tstruct %i *%i = %i->%i;\n\tint ret;\n\n",
    "#define %i_%i\t%n\n",
    "/*\n * %w %w %w %w %w %w %w %w,\n * %w %w %w %w %w %w %w.\n */\n",
    "\t/* %w %w %w %w %w */\n",
    '\tpr_debug("%w %w %i: %%d\\n", %i->%i);\n',
    "    let %i = self.%i.%i(&%i)?;\n",
    "    pub fn %i(&self, %i: &%i) -> Result<%i> {\n",
    "\tcase %i:\n\t\treturn %i(%i);\n",
    "\t{ %n, %n, %n, %i },\n",
    "EXPORT_SYMBOL_GPL(%i);\n\n",
    "    /// %w %w %w `%i` %w %w.\n",
]


class Words:
    """Plain words, most of them rare: a skewed choice, as in any language."""

    def __init__(self, random: Random, count: int) -> None:
        self._next = random.random
        pick = self._one_of
        seen: dict[str, None] = {}
        while len(seen) < count:
            syllables = 1 + int(self._next() * 2.4)
            seen["".join(pick(_ONSETS) + pick(_VOWELS) + pick(_CODAS) for _ in range(syllables))] = None
        self.words = list(seen)

    def _one_of(self, things: list[str]) -> str:
        return things[int(self._next() * len(things))]

    def word(self) -> str:
        x = self._next()
        return self.words[int(x * x * x * len(self.words))]

    def identifier(self) -> str:
        return "_".join(self.word() for _ in range(1 + int(self._next() * 2.2)))


def text(random: Random, size: int) -> bytes:
    """`size` bytes of something like source code."""
    words = Words(random, 2500)
    rand = random.random
    parts: list[bytes] = []
    done = 0
    while done < size:
        names = [words.identifier() for _ in range(NAMES)]
        lines = [_LINES[int(rand() * len(_LINES))] for _ in range(9)]
        section: list[str] = []
        length = 0
        while length < SECTION:
            if section and rand() < REPEAT:  # code repeats itself, a few lines at a time
                start = int(rand() * len(section))
                again = section[start : start + 3]
                section += again
                length += sum(map(len, again))
                continue
            pieces = lines[int(rand() * len(lines))].split("%")
            line = [pieces[0]]
            for piece in pieces[1:]:
                match piece[:1]:
                    case "i":
                        x = rand()
                        line.append(names[int(x * x * x * NAMES)])
                    case "w":
                        line.append(words.word())
                    case "n":
                        line.append(str(int(rand() * rand() * 4096)))
                    case _:
                        line.append("%")
                line.append(piece[1:])
            made = "".join(line)
            section.append(made)
            length += len(made)
        encoded = "".join(section).encode()
        parts.append(encoded)
        done += len(encoded)
    return b"".join(parts)[:size]


def binary(random: Random, size: int) -> bytes:
    """`size` bytes of something like the sections of ELF files."""
    words = Words(random, 3000)
    rand = random.random
    makers = [_code] * 6 + [_addresses] * 2 + [_strings] * 2 + [_records] * 2 + [_noise]
    parts: list[bytes] = []
    done = 0
    while done < size:
        part = makers[int(rand() * len(makers))](random, words)
        padding = -len(part) % 64
        parts.append(part + bytes(padding))
        done += len(part) + padding
    return b"".join(parts)[:size]


def noise(random: Random, size: int) -> bytes:
    """`size` bytes that do not compress: archives, pictures, keys."""
    return random.randbytes(size)


def _code(random: Random, _: Words) -> bytes:
    """Instructions: few opcodes, often in the same short runs, with operands that repeat less."""
    rand = random.random
    opcodes = [random.randbytes(1 + int(rand() * 4)) for _ in range(60)]
    operands = [random.randbytes(1 + int(rand() * 3)) for _ in range(200)]
    idioms = [b"".join(opcodes[int(rand() * 60)] for _ in range(2 + int(rand() * 4))) for _ in range(120)]
    out = bytearray()
    while len(out) < SECTION:
        x, y = rand(), rand()
        out += idioms[int(x * x * 120)] if x * y > 0.1 else opcodes[int(x * y * 60)]
        out += operands[int(y * y * y * 200)]
    return bytes(out)


def _addresses(random: Random, _: Words) -> bytes:
    """A table of pointers: ascending, with a small uneven step."""
    address = int(random.random() * (1 << 24))
    out: list[int] = []
    while len(out) < SECTION // 8:
        address += 8 * (1 + int(random.random() * 24))
        out.append(address)
    return struct.pack(f"<{len(out)}Q", *out)


def _strings(_: Random, words: Words) -> bytes:
    """A string table."""
    out = bytearray()
    while len(out) < SECTION:
        out += words.identifier().encode() + b"\0"
    return bytes(out)


def _records(random: Random, _: Words) -> bytes:
    """Symbols or relocations: small fields, of which few change from one record to the next."""
    rand = random.random
    out = bytearray()
    name = 0
    while len(out) < SECTION:
        name += 4 + int(rand() * 20)
        kind = (0x12, 0x11, 0x02, 0x22)[int(rand() * rand() * 4)]
        out += struct.pack("<IBBHQQ", name, kind, 0, 14, 0x4000 + 16 * int(rand() * 65536), int(rand() * 300))
    return bytes(out)


def _noise(random: Random, _: Words) -> bytes:
    return random.randbytes(SECTION // 4)
