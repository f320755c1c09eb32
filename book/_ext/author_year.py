"""List papers as the text cites them: "Khanal and Capone, 2024", sorted by author and year."""

from collections import Counter

from pybtex.plugin import register_plugin
from pybtex.style.formatting.plain import Style as PlainStyle
from pybtex.style.labels import BaseLabelStyle

NAME = "author_year_list"


def family_name(person):
    """A person's prelast and last names, as they are printed."""
    return " ".join([*person.prelast_names, *person.last_names]).replace("{", "").replace("}", "")


def label(entry):
    """Up to two authors by name, more as "et al.", and the year."""
    people = [family_name(person) for person in entry.persons.get("author", [])]
    if len(people) > 2 or people[-1:] == ["others"]:
        people = [f"{people[0]} et al."]
    return f"{' and '.join(people)}, {entry.fields['year']}"


class AuthorYearLabels(BaseLabelStyle):
    """Labels such as "Sun et al., 2024"; two that would be the same get a letter."""

    def format_labels(self, sorted_entries):
        plain = [label(entry) for entry in sorted_entries]
        seen = Counter()
        for text in plain:
            seen[text] += 1
            yield text + (chr(ord("a") + seen[text] - 1) if plain.count(text) > 1 else "")


class AuthorYearStyle(PlainStyle):
    """The plain style with these labels."""

    default_label_style = AuthorYearLabels


def setup(app):
    """Sphinx's entry point."""
    register_plugin("pybtex.style.formatting", NAME, AuthorYearStyle)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
