"""Keys pressed in a panel stay in it: JupyterLab takes letters in a dropdown for commands, and d d deletes the cell."""

import anywidget


class Keys(anywidget.AnyWidget):
    """Shows nothing; whatever is focused in the panel around it keeps its keys."""

    _esm = """
    const mark = (event) => { event.target.dataset.lmSuppressShortcuts = "true"; };
    const find = (el, tries) => {
      const panel = el.closest(".sae-panel");
      if (panel) panel.addEventListener("focusin", mark);
      else if (tries) requestAnimationFrame(() => find(el, tries - 1));
    };
    export default { render({ el }) { find(el, 600); } };
    """
