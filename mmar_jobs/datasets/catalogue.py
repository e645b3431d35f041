"""What each known data set is: where it lies, which of its files are needed, what is known of it.

Not here: the row formats (sources/). What is uncertain is said so; the hosts' own listings decide
sizes, digests, revisions and licences, so none is written down here.
"""

from typing import Final, Literal, NamedTuple


class Dataset(NamedTuple):
    """One data set: `repository` is OWNER/NAME on the Hub or a record number on Zenodo.

    `needed` and `archives` are patterns of file names, as fnmatch reads them. `top_folder` is the
    folder that the rows' audio paths begin with: an archive that packs it one folder deeper is
    unpacked without that folder.
    """

    host: Literal["hub", "zenodo"]
    repository: str
    needed: tuple[str, ...]
    archives: tuple[str, ...]
    top_folder: str = ""
    hint: str = ""


CATALOGUE: Final = {
    # Card of BoJack/MMAR: 1,000 rows as one JSON array without the rubrics, clips of 3 GB in one
    # tar.gz. MMAR-meta.jsonl with the rubrics is in the repository ddlBoJack/MMAR on GitHub.
    "mmar": Dataset(
        host="hub",
        repository="BoJack/MMAR",
        needed=("MMAR-meta.json",),
        archives=("mmar-audio.tar.gz",),
        top_folder="audio",
    ),
    # nvidia/AudioSkills has a JSON array a subset in audioskills_xl/; CountingQA's sounds are
    # named concat_*.wav. Where their archive lies is not documented, hence the pattern.
    "countingqa": Dataset(
        host="hub",
        repository="nvidia/AudioSkills",
        needed=("audioskills_xl/CountingQA.json",),
        archives=("*[Cc]ounting*.tar.gz", "*[Cc]ounting*.tar", "*[Cc]ounting*.zip"),
        hint="put the clips (concat_*.wav) below the folder by hand",
    ),
    # Card of amaai-lab/MusicBench: 52,768 training rows and two test sets of 400 as JSON lines,
    # clips of 16.8 GB in one tar.gz; FMACaps in the same repository is another data set.
    "musicbench": Dataset(
        host="hub",
        repository="amaai-lab/MusicBench",
        needed=("MusicBench_train.json",),
        archives=("MusicBench.tar.gz",),
    ),
    # Zenodo record 15379789 (Primus, Schmid and Widmer 2025, arXiv 2505.07609): 12,358 Freesound
    # recordings, captions with onset and offset; metadata.csv has each recording's own licence.
    "tacos": Dataset(
        host="zenodo",
        repository="15379789",
        needed=("annotations_strong.csv", "metadata.csv"),
        archives=("audio.zip",),
    ),
}
