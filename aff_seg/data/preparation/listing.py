"""A JSON file in COCO's form, as a record for each image."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from aff_seg.data.loaders import entries
from aff_seg.data.preparation.files import read_json, write_json
from aff_seg.errors import UserError

# {"image": entry of "images", "annotations": entries of "annotations" for this image}
Record = dict
_PANOPTIC_KEYS = ("file_name", "segments_info")


@dataclass(frozen=True)
class Listing:
    """A file with ``images``, ``annotations`` and ``categories``.

    Attributes:
        path: of the file.
        categories: its entries.
        numbered: whether annotations have an ``id`` of their own, as instances have. Records
            are without; they are numbered from 1 when they are written.
    """

    path: Path
    categories: list[dict]
    numbered: bool

    def read(self) -> dict:
        """The file's content."""
        content = read_json(self.path)
        wanted = {
            "images": ("id", "file_name"),
            "annotations": ("image_id",) if self.numbered else ("image_id", *_PANOPTIC_KEYS),
            "categories": ("id", "name"),
        }
        if not isinstance(content, dict) or not wanted.keys() <= content.keys():
            raise UserError(f"{self.path} lacks one of the lists {', '.join(wanted)}.")
        for part, keys in wanted.items():
            entries(content, part, self.path, *keys)
        if not self.numbered:
            for annotation in content["annotations"]:
                entries(annotation, "segments_info", self.path, "id", "category_id")
        return content

    def records(self, content: dict) -> dict[str | int, Record]:
        """The record of each image, by its id; without images that lack a panoptic annotation."""
        records = {image["id"]: {"image": image, "annotations": []} for image in content["images"]}
        for entry in content["annotations"]:
            if entry["image_id"] in records:
                if self.numbered:
                    entry = {key: value for key, value in entry.items() if key != "id"}
                records[entry["image_id"]]["annotations"].append(entry)
        return {
            i: record for i, record in records.items() if self.numbered or record["annotations"]
        }

    def write(self, records: Iterable[Record]) -> None:
        """Write the records in the order given."""
        records = list(records)
        annotations = [entry for record in records for entry in record["annotations"]]
        if self.numbered:
            annotations = [{"id": n, **entry} for n, entry in enumerate(annotations, start=1)]
        images = [record["image"] for record in records]
        content = {"images": images, "annotations": annotations, "categories": self.categories}
        write_json(self.path, content)

    def faults(self, content: dict) -> list[str]:
        """Ids that occur twice or lead nowhere, one sentence each."""
        images, annotations = content["images"], content["annotations"]
        faults = [f"{self.path} lists image {i} twice." for i in _twice(e["id"] for e in images)]
        # A panoptic file has one annotation for each image, an instance file many.
        key = "id" if self.numbered else "image_id"
        if self.numbered and not all("id" in entry for entry in annotations):
            faults.append(f"{self.path} has annotations without id.")
        ids = (entry[key] for entry in annotations if key in entry)
        faults += [f"{self.path} lists annotation {i} twice." for i in _twice(ids)]
        known = {image["id"] for image in images}
        unknown = dict.fromkeys(e["image_id"] for e in annotations if e["image_id"] not in known)
        faults += [f"{self.path} annotates image {i}, which it does not list." for i in unknown]
        return faults + self._category_faults(content)

    def _category_faults(self, content: dict) -> list[str]:
        listed = [c["id"] for c in content["categories"]]
        faults = [f"{self.path} lists category {i} twice." for i in _twice(listed)]
        expected = {c["id"]: c["name"] for c in self.categories}
        for category in content["categories"]:
            name = expected.get(category["id"])
            if name is None:
                faults.append(f"{self.path} lists category {category['id']}, which is unknown.")
            elif name != category["name"]:
                faults.append(
                    f"{self.path} calls category {category['id']} {category['name']!r}, not "
                    f"{name!r}."
                )
        missing = [i for i in expected if i not in listed]
        if missing:
            faults.append(
                f"{self.path} lacks {len(missing)} of {len(expected)} categories, the first is "
                f"{missing[0]}."
            )
        return faults


class Journal:
    """Records of a run that has not finished, beside the listing that they will make."""

    def __init__(self, listing: Listing):
        self._path = listing.path.with_name(f".{listing.path.name}.journal")

    def read(self) -> dict[str | int, Record]:
        """Records by image id; a line that was cut short is passed over."""
        if not self._path.is_file():
            return {}
        records = {}
        for line in self._path.read_text(errors="replace").splitlines():
            try:
                record = json.loads(line)
                records[record["image"]["id"]] = record
            except (ValueError, TypeError, KeyError):
                continue
        return records

    def __enter__(self) -> "Journal":
        self._file = open(self._path, "a")
        # Ends a line that was cut short.
        self._file.write("\n")
        return self

    def add(self, record: Record) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def delete(self) -> None:
        self._path.unlink(missing_ok=True)


def _twice(values: Iterable) -> list:
    return [value for value, count in Counter(values).items() if count > 1]
