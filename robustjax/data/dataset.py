"""Data sets in memory: plain arrays, checked once, cut the same way every time."""

import dataclasses

import numpy as np

from robustjax import _checks


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images of one split.

    Attributes:
      images: [N, H, W, C], uint8, or float32 in [0, 1].
      labels: [N], int32 class index.
      index: [N], int64, position in the source's split. It survives every cut, so
        that keys folded with it give an image the same noise in every subset.
      class_names: One name per class, in label order.
      name: For messages and reports.

    Raises:
      InputError: Shapes disagree, a dtype is another one, a label is no class, or a
        float pixel lies outside [0, 1].

    Example:
      >>> images = np.zeros((2, 8, 8, 1), np.uint8)
      >>> pair = Dataset(
      ...     images, np.int32([0, 1]), np.arange(2), ("cat", "dog"), name="pets"
      ... )
      >>> pair
      Dataset('pets', 2 images 8x8x1 uint8, 2 classes)
      >>> pair.take([1]).index
      array([1])
    """

    images: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    class_names: tuple[str, ...]
    name: str = "dataset"

    def __post_init__(self):
        _check_images(self.images)
        for field, dtype in (("labels", np.int32), ("index", np.int64)):
            array = getattr(self, field)
            if array.dtype != dtype or array.shape != self.images.shape[:1]:
                raise _checks.InputError(
                    f"`{field}` must be {np.dtype(dtype)} of shape "
                    f"{self.images.shape[:1]}, one per image, got {array.dtype} "
                    f"{array.shape}."
                )
        if wrong := self.labels[(self.labels < 0) | (self.labels >= self.num_classes)][
            :1
        ].tolist():
            raise _checks.InputError(
                f"`labels` of {self.name} must lie in [0, {self.num_classes - 1}], one "
                f"per entry of `class_names`, got {wrong[0]}."
            )

    @property
    def num_classes(self) -> int:
        """How many classes there are, seen in this split or not."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        shape = "x".join(str(size) for size in self.images.shape[1:])
        return (
            f"Dataset({self.name!r}, {len(self)} images {shape} {self.images.dtype}, "
            f"{self.num_classes} classes)"
        )

    def take(self, rows: np.ndarray | list[int] | slice) -> "Dataset":
        """The examples at `rows`, in that order, with their `index`."""
        return dataclasses.replace(
            self,
            images=self.images[rows],
            labels=self.labels[rows],
            index=self.index[rows],
        )


@dataclasses.dataclass(frozen=True)
class Splits:
    """What a source offers; selection and early stopping look at `validation` only.

    Attributes:
      train: What is learned from, without the validation images.
      validation: For model selection; None if none was asked for and the source
        has none of its own.
      test: For the final numbers.
    """

    train: Dataset
    validation: Dataset | None
    test: Dataset


def stratified_subset(dataset: Dataset, num_examples: int, *, seed: int = 0) -> Dataset:
    """`num_examples` examples with the class shares of the whole, in its order.

    The first examples of a set that is stored class by class (Oxford Flowers, most
    image folders) are all of one class; this is the subset to judge such a set on.

    Args:
      dataset: The examples to draw from.
      num_examples: How many, from the number of classes up to `len(dataset)`.
      seed: Another seed, another subset.

    Raises:
      InputError: The subset cannot hold every class.

    Example:
      >>> images = np.zeros((40, 8, 8, 1), np.uint8)
      >>> labels = np.repeat(np.arange(2, dtype=np.int32), 20)
      >>> whole = Dataset(images, labels, np.arange(40), ("cat", "dog"))
      >>> stratified_subset(whole, 10).labels
      array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1], dtype=int32)
    """
    if num_examples == len(dataset):
        return dataset
    return stratified_cut(dataset, num_examples, seed=seed, argument="num_examples")[1]


def stratified_cut(
    dataset: Dataset, count: int, *, seed: int, argument: str
) -> tuple[Dataset, Dataset]:
    """The rest and `count` examples, each with the class shares of the whole.

    Args:
      dataset: The examples to cut.
      count: How many go into the second part.
      seed: Another seed, another cut.
      argument: What the user calls `count`, for the message.

    Returns:
      Two disjoint data sets that together are `dataset`, both in its order.

    Raises:
      InputError: A class would be missing from one of the parts.
    """
    from sklearn.model_selection import train_test_split  # slow to import

    try:
        rest, chosen = train_test_split(
            np.arange(len(dataset)),
            test_size=count,
            stratify=dataset.labels,
            random_state=seed,
        )
    except ValueError as error:
        raise _checks.InputError(
            f"`{argument}` = {count} cannot be cut from {dataset!r} with every class "
            f"on both sides: {error}"
        ) from error
    return dataset.take(np.sort(rest)), dataset.take(np.sort(chosen))


def _check_images(images: np.ndarray) -> None:
    if images.ndim != 4 or images.dtype not in (np.uint8, np.float32):
        raise _checks.InputError(
            f"`images` must be [N, H, W, C], uint8 or float32 in [0, 1], got "
            f"{images.dtype} {images.shape}."
        )
    if images.dtype == np.float32 and images.size:
        low, high = images.min(), images.max()
        # Written so that NaN fails too.
        if not (low >= 0 and high <= 1):
            raise _checks.InputError(
                f"`images` of float32 must lie in [0, 1], got [{low:g}, {high:g}]. "
                "Divide by 255, or pass uint8."
            )
