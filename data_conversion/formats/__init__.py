"""Every format by name. A new one = one file with ``iter_records`` (and ``write_records``) + one line here."""

from data_conversion.base import Format
from data_conversion.formats import (
    bbu_json,
    coco,
    coco_writer,
    csv_table,
    cvat,
    hf_dataset,
    label_studio,
    label_studio_writer,
    labelme,
    pascal_voc,
    pascal_voc_writer,
    visual_genome,
    yolo,
    yolo_writer,
)

FORMATS: dict[str, Format] = {
    "bbu_json": Format(bbu_json.iter_records, "raw annotation JSON beside each photo, both label schemes"),
    "pascal_voc": Format(
        pascal_voc.iter_records,
        "Annotations/*.xml, JPEGImages/, ImageSets/Main/",
        pascal_voc_writer.write_records,
        pascal_voc_writer.photo_place,
    ),
    "coco": Format(
        coco.iter_records,
        "COCO: annotations/*.json (instances, captions) or _annotations.coco.json in folders of photos",
        coco_writer.write_records,
        coco_writer.photo_place,
        shares=True,
    ),
    "csv": Format(csv_table.iter_records, "*.csv with a header: image,x1,y1,x2,y2,desc", shares=True),
    "cvat": Format(cvat.iter_records, "CVAT for images 1.1: *.xml, photos anywhere below"),
    "hf_dataset": Format(
        hf_dataset.iter_records, "Hugging Face: save_to_disk, Parquet shards, or an image folder", shares=True
    ),
    "label_studio": Format(
        label_studio.iter_records,
        "JSON export of Label Studio; written as pre-annotations to correct, with the labelling interface",
        label_studio_writer.write_records,
        label_studio_writer.photo_place,
    ),
    "labelme": Format(labelme.iter_records, "LabelMe: one JSON beside each photo", labelme.write_records),
    "visual_genome": Format(
        visual_genome.iter_records, "region_descriptions*.json, image_data*.json, VG_100K/, VG_100K_2/", shares=True
    ),
    "yolo": Format(
        yolo.iter_records,
        "Ultralytics: data.yaml, images/, labels/*.txt",
        yolo_writer.write_records,
        yolo_writer.photo_place,
    ),
}
