"""The report card's functions by the names of version 0.1, `crosscal.report.studies.report_card_show`."""

from crosscal_book.chapters.report_card import CHAPTER, FIGURE


def _finish(_canvas, drawing, *words):
    return drawing.finish(*words)


def _card_figure(results, settings):
    made = CHAPTER.figures[FIGURE](CHAPTER.page(results, settings))
    return made if isinstance(made, str) else finish(made[0].canvas, made[0], FIGURE, *made[1:])


def _table_of(name: str):
    return lambda results, settings: CHAPTER.page(results, settings).table(name)


finish, card_figure, card_table, savings_table = _finish, _card_figure, _table_of("losses"), _table_of("savings")
