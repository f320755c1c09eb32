"""Give pages without a list of contents its place: tables, code and figures use the whole width."""

REMOVE = "html_theme.sidebar_secondary.remove"  # the theme's own name for it


def widen(app, pagename, templatename, context, doctree):
    """Leave out the second sidebar where it would be empty."""
    if doctree is not None and not context.get("display_toc"):
        context["meta"] = {**(context.get("meta") or {}), REMOVE: "true"}


def setup(app):
    """Sphinx's entry point."""
    app.connect("html-page-context", widen)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
