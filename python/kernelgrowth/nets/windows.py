"""Windows laid over channels-last images: im2col, its transpose, and averages, for NumPy and CuPy arrays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kernelgrowth._backend.arrays import array_namespace, is_cupy
from kernelgrowth._backend.native import col2im, im2col

__all__ = ["Window"]


@dataclass(frozen=True)
class Window:
    """A window that moves over images, as (height, width) each.

    Attributes
    ----------
    kernel, stride : (int, int)
        Its size and its steps, at least 1.
    padding : (int, int)
        Zeros around the image that it may show, at least 0.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)

    def places(self, height: int, width: int) -> tuple[int, int]:
        """Return in how many rows and columns the window stands on an image; below 1 where it does not fit."""
        rows, columns = (
            (size + 2 * pad - window) // step + 1
            for size, pad, window, step in zip((height, width), self.padding, self.kernel, self.stride, strict=True)
        )
        return rows, columns

    def im2col(self, images: Any, columns: Any) -> None:
        """Write what the window shows of `images` (N, H, W, C) to `columns` (N, T, kh·kw·C)."""
        if is_cupy(images):
            _im2col(self, images, columns)
        else:
            im2col(images, columns, kernel=self.kernel, stride=self.stride, padding=self.padding)

    def col2im(self, columns: Any, images: Any) -> None:
        """Write the transpose of `im2col` at `columns` to `images`."""
        if is_cupy(images):
            _col2im(self, columns, images)
        else:
            col2im(columns, images, kernel=self.kernel, stride=self.stride, padding=self.padding)

    def average(self, images: Any) -> Any:
        """Return the mean of what the window shows, (N, H, W, C) -> (N, rows, columns, C); without padding."""
        rows, columns = self.places(*images.shape[1:3])
        total = array_namespace(images).zeros((len(images), rows, columns, images.shape[3]), dtype=images.dtype)
        for _, _, area in self._areas(rows, columns):
            total += images[area]
        total *= 1 / (self.kernel[0] * self.kernel[1])
        return total

    def spread(self, averages: Any, height: int, width: int) -> Any:
        """Return the transpose of `average` at (N, rows, columns, C): (N, H, W, C)."""
        images = array_namespace(averages).zeros(
            (len(averages), height, width, averages.shape[3]), dtype=averages.dtype
        )
        share = averages * (1 / (self.kernel[0] * self.kernel[1]))
        for _, _, area in self._areas(*averages.shape[1:3]):
            images[area] += share
        return images

    def _areas(self, rows: int, columns: int) -> Iterator[tuple[int, int, tuple[slice, ...]]]:
        """Yield each pixel (i, j) of the window with the part of the padded images that it shows in all its places."""
        (down, right) = self.stride
        for i in range(self.kernel[0]):
            for j in range(self.kernel[1]):
                vertical = slice(i, i + (rows - 1) * down + 1, down)
                yield i, j, (slice(None), vertical, slice(j, j + (columns - 1) * right + 1, right))


def _im2col(window: Window, images: Any, columns: Any) -> None:
    """`Window.im2col` in the operations of an array library."""
    n, height, width, channels = images.shape
    rows, cols = window.places(height, width)
    padded = _padded(window, images)
    by_pixel = columns.reshape(n, rows, cols, *window.kernel, channels)
    for i, j, area in window._areas(rows, cols):
        by_pixel[:, :, :, i, j] = padded[area]


def _col2im(window: Window, columns: Any, images: Any) -> None:
    """`Window.col2im` in the operations of an array library."""
    n, height, width, channels = images.shape
    rows, cols = window.places(height, width)
    images[...] = 0
    padded = _padded(window, images)
    by_pixel = columns.reshape(n, rows, cols, *window.kernel, channels)
    for i, j, area in window._areas(rows, cols):
        padded[area] += by_pixel[:, :, :, i, j]
    above, left = window.padding
    images[...] = padded[:, above : above + height, left : left + width]


def _padded(window: Window, images: Any) -> Any:
    above, left = window.padding
    return array_namespace(images).pad(images, ((0, 0), (above, above), (left, left), (0, 0)))
