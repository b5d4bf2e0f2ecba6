"""Compare the schema that the migrations create with the schema that the models and the .sql files define."""

from __future__ import annotations

from shop import migrations
from shop.catalog import compare_catalogs, read_whole_catalog
from shop.ledger.schema import find_catalog_differences
from shop.tables import create_tables


def find_differences(migrated_url: str, created_url: str) -> dict[str, list[str]]:
    """The differences, under titles that say what differs. Empty if all agree.

    Both databases must be empty. The first one is migrated, and the second one is created from the models and the
    .sql files. `catalog.txt` is compared with the second one.
    """
    migrations.upgrade(migrated_url)
    create_tables(created_url)
    created = read_whole_catalog(created_url)
    differences = {
        "the migrations don't create what the models and ledger/sql define": list(
            compare_catalogs(read_whole_catalog(migrated_url), created, show_changes=True)
        ),
        "ledger/catalog.txt is out of date, run shop migrate --write-catalog": find_catalog_differences(created),
    }
    return {title: lines for title, lines in differences.items() if lines}
