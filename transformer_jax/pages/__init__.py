"""HTML pages in one file: no network, no script, no package beyond the standard library.

    body = [pages.section("Loss", pages.curves("Loss by step", [pages.Line("training", points)], x="step"))]
    text = pages.page("runs/a", body)

Every function returns `Html`. Texts that are not `Html` are escaped, so that a text of a run can never become markup,
and a policy in the page's head forbids scripts and requests besides. Colours follow the reader's light or dark setting;
on paper they are those of the light one. Each picture has a title and a description in words, each table a caption and
headers, and what scrolls can be reached with the keyboard.
"""

from transformer_jax.pages.curves import Line, curves, shares
from transformer_jax.pages.frame import POLICY, Html, element, escaped, join, link, note, number, page, section, slug
from transformer_jax.pages.parallel import parallel
from transformer_jax.pages.tables import grid, image_type, picture, pictures, sheet, table

__all__ = [
    "POLICY",
    "Html",
    "Line",
    "curves",
    "element",
    "escaped",
    "grid",
    "image_type",
    "join",
    "link",
    "note",
    "number",
    "page",
    "parallel",
    "picture",
    "pictures",
    "section",
    "shares",
    "sheet",
    "slug",
    "table",
]
