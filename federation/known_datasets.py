"""Facts of the data sets FedMQ knows by name: no files, no network.

MedMNIST's figures are those of its own package (medmnist.INFO 3.0.2), kept here because that package can't be
installed without torchvision; a test compares them wherever it is installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MEDMNIST_URL = "https://zenodo.org/records/10519652/files/"
MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file to fetch: its address and MD5, and the name it is cached under."""

    url: str
    md5: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownDataset:
    """What is known of a data set before it is read."""

    name: str
    class_names: tuple[str, ...]
    num_channels: int
    num_train: int
    num_validation: int
    num_test: int
    licence: str
    files: Mapping[int, tuple[RemoteFile, ...]]
    """Image height and width in pixels -> the files that hold them; no files for what ships with a library."""

    @property
    def num_classes(self) -> int:
        """How many classes it has."""
        return len(self.class_names)

    @property
    def num_examples(self) -> int:
        """How many images it has in all."""
        return self.num_train + self.num_validation + self.num_test

    @property
    def sizes(self) -> tuple[int, ...]:
        """Image heights and widths it comes in, in pixels."""
        return tuple(self.files)


MEDMNIST_SIZES = (28, 64, 128, 224)

CC_BY = "CC BY 4.0"


def _medmnist(
    name: str,
    labels: str,
    *,
    num_channels: int,
    num: tuple[int, int, int],
    md5: tuple[str, str, str, str],
    licence: str = CC_BY,
) -> KnownDataset:
    files: dict[int, tuple[RemoteFile, ...]] = {}
    for size, digest in zip(MEDMNIST_SIZES, md5, strict=True):
        file_name = f"{name}.npz" if size == MEDMNIST_SIZES[0] else f"{name}_{size}.npz"
        files[size] = (RemoteFile(url=f"{MEDMNIST_URL}{file_name}?download=1", md5=digest, name=file_name),)
    return KnownDataset(
        name=name,
        class_names=tuple(labels.split(" | ")),
        num_channels=num_channels,
        num_train=num[0],
        num_validation=num[1],
        num_test=num[2],
        licence=licence,
        files=files,
    )


ORGANS = "bladder | femur-left | femur-right | heart | kidney-left | kidney-right | liver | lung-left | lung-right | pancreas | spleen"

DIGITS = tuple(str(digit) for digit in range(10))

_DATASETS = (
    _medmnist(
        "pathmnist",
        "adipose | background | debris | lymphocytes | "
        "mucus | smooth muscle | normal colon mucosa | cancer-associated stroma | colorectal adenocarcinoma epithelium",
        num_channels=3,
        num=(89996, 10004, 7180),
        md5=(
            "a8b06965200029087d5bd730944a56c1",
            "55aa9c1e0525abe5a6b9d8343a507616",
            "ac42d08fb904d92c244187169d1fd1d9",
            "2c51a510bcdc9cf8ddb2af93af1eadec",
        ),
    ),
    _medmnist(
        "dermamnist",
        "actinic keratoses and intraepithelial carcinoma | basal cell carcinoma | benign keratosis-like lesions | "
        "dermatofibroma | melanoma | melanocytic nevi | vascular lesions",
        num_channels=3,
        num=(7007, 1003, 2005),
        md5=(
            "0744692d530f8e62ec473284d019b0c7",
            "b70a2f5635c6199aeaa28c31d7202e1f",
            "2defd784463fa5243564e855ed717de1",
            "8974907d8e169bef5f5b96bc506ae45d",
        ),
        licence="CC BY-NC 4.0",
    ),
    _medmnist(
        "octmnist",
        "choroidal neovascularization | diabetic macular edema | drusen | normal",
        num_channels=1,
        num=(97477, 10832, 1000),
        md5=(
            "c68d92d5b585d8d81f7112f81e2d0842",
            "e229e9440236b774d9f0dfef9d07bdaf",
            "0a97e76651ace45c5d943ee3f65b63ae",
            "abc493b6d529d5de7569faaef2773ba3",
        ),
    ),
    _medmnist(
        "pneumoniamnist",
        "normal | pneumonia",
        num_channels=1,
        num=(4708, 524, 624),
        md5=(
            "28209eda62fecd6e6a2d98b1501bb15f",
            "8f4eceb4ccffa70c672198ea285246c6",
            "05b46931834c231683c68f40c47b2971",
            "d6a3c71de1b945ea11211b03746c1fe1",
        ),
    ),
    _medmnist(
        "retinamnist",
        "0 | 1 | 2 | 3 | 4",
        num_channels=3,
        num=(1080, 120, 400),
        md5=(
            "bd4c0672f1bba3e3a89f0e4e876791e4",
            "afda852cc34dcda56f86ad2b2457dbcc",
            "e48e916a24454daf90583d4e6efb1a18",
            "eae7e3b6f3fcbda4ae613ebdcbe35348",
        ),
    ),
    _medmnist(
        "breastmnist",
        "malignant | normal, benign",
        num_channels=1,
        num=(546, 78, 156),
        md5=(
            "750601b1f35ba3300ea97c75c52ff8f6",
            "742edef2a1fd1524b2efff4bd7ba9364",
            "363e4b3f8d712e9b5de15470a2aaadf1",
            "b56378a6eefa9fed602bb16d192d4c8b",
        ),
    ),
    _medmnist(
        "bloodmnist",
        "basophil | eosinophil | erythroblast | immature granulocytes(myelocytes, metamyelocytes and promyelocytes) | "
        "lymphocyte | monocyte | neutrophil | platelet",
        num_channels=3,
        num=(11959, 1712, 3421),
        md5=(
            "7053d0359d879ad8a5505303e11de1dc",
            "2b94928a2ae4916078ca51e05b6b800b",
            "adace1e0ed228fccda1f39692059dd4c",
            "b718ff6835fcbdb22ba9eacccd7b2601",
        ),
    ),
    _medmnist(
        "tissuemnist",
        "Collecting Duct, Connecting Tubule | Distal Convoluted Tubule | Glomerular endothelial cells | Interstitial endothelial cells | "
        "Leukocytes | Podocytes | Proximal Tubule Segments | Thick Ascending Limb",
        num_channels=1,
        num=(165466, 23640, 47280),
        md5=(
            "ebe78ee8b05294063de985d821c1c34b",
            "123ece2eba09d0aa5d698fda57103344",
            "61b955355d7425a89687b06cca3ce0c2",
            "b077128c4a949f0a4eb01517f9037b9c",
        ),
    ),
    _medmnist(
        "organamnist",
        ORGANS,
        num_channels=1,
        num=(34561, 6491, 17778),
        md5=(
            "68e3f8846a6bd62f0c9bf841c0d9eacc",
            "2dcccc29b88e6da5a01161ef20cda288",
            "eeae80d0a227a8d099027e1b3cfd3b60",
            "50747347e05c87dd3aaf92c49f9f3170",
        ),
    ),
    _medmnist(
        "organcmnist",
        ORGANS,
        num_channels=1,
        num=(12975, 2392, 8216),
        md5=(
            "b9ceb9546e10131b32923c5bbeaea2b1",
            "3ce34a8724ea6f548e6db4744d03b6a9",
            "773c1f009daa3fe5d9a2a201b2a7ed94",
            "050f5e875dc056f6768abf94ec9995d1",
        ),
    ),
    _medmnist(
        "organsmnist",
        ORGANS,
        num_channels=1,
        num=(13932, 2452, 8827),
        md5=(
            "9ab87b696fb54e2a387ebe992d6ed5f1",
            "53a6d115339d874c25e309a994ff46d3",
            "ded0c5fa01a95dc4978b956f613e9b8e",
            "b354719e553fbbb2513d5533f52a4cb1",
        ),
    ),
    KnownDataset(
        name="mnist",
        class_names=DIGITS,
        num_channels=1,
        num_train=60_000,
        num_validation=0,
        num_test=10_000,
        licence="CC BY-SA 3.0",
        files={
            28: tuple(
                RemoteFile(url=MNIST_URL + file_name, md5=md5, name=f"mnist/{file_name}")
                for file_name, md5 in (
                    ("train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
                    ("train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432"),
                    ("t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3"),
                    ("t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c"),
                )
            )
        },
    ),
    KnownDataset(
        name="cifar10",
        class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        num_channels=3,
        num_train=50_000,
        num_validation=0,
        num_test=10_000,
        licence="not stated; cite Krizhevsky 2009",
        files={
            32: (
                RemoteFile(
                    url=CIFAR10_URL + "cifar-10-binary.tar.gz",
                    md5="c32a1d4ab5d03f1284b67883e8d87530",
                    name="cifar10/cifar-10-binary.tar.gz",
                ),
            )
        },
    ),
    KnownDataset(
        name="digits",
        class_names=DIGITS,
        num_channels=1,
        num_train=1437,
        num_validation=0,
        num_test=360,
        licence="CC BY 4.0",
        files={8: ()},
    ),
)

KNOWN_DATASETS: Mapping[str, KnownDataset] = {dataset.name: dataset for dataset in _DATASETS}

REFUSED_DATASETS: Mapping[str, str] = {
    "chestmnist": "it is multi-label (14 findings an image), and FedMQ trains one label per image",
    **dict.fromkeys(
        ("organmnist3d", "nodulemnist3d", "adrenalmnist3d", "fracturemnist3d", "vesselmnist3d", "synapsemnist3d"),
        "its examples are 3D volumes, and FedMQ trains on 2D images",
    ),
}
"""Data sets that look like the others but can't be used, and why."""
