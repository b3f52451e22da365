"""Every source format by name. A new one = one file with ``iter_records`` + one line here."""

from data_conversion import bbu_json, pascal_voc
from data_conversion.base import IterRecords

FORMATS: dict[str, IterRecords] = {
    "bbu_json": bbu_json.iter_records,
    "pascal_voc": pascal_voc.iter_records,
}
