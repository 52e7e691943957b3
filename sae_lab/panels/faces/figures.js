// One plotly for all figures of a page. A failed load is forgotten, so that the next figure tries again.
const kept = (globalThis.__sae_lab_plotly__ ??= new Map());

async function fetched(model) {
  const library = await model.widget_manager.get_model(model.get("_library"));
  const url = URL.createObjectURL(new Blob([library.get("source")], { type: "text/javascript" }));
  try {
    await import(url);
    return globalThis.Plotly;
  } finally {
    URL.revokeObjectURL(url);
  }
}

function loaded(model) {
  const version = model.get("_version");
  if (!kept.has(version)) {
    kept.set(version, fetched(model).catch((error) => { kept.delete(version); throw error; }));
  }
  return kept.get(version);
}

// Before it has a place a figure would be as wide as plotly thinks.
function placed(el) {
  return new Promise((resolve) => {
    const watched = new ResizeObserver(() => {
      if (!el.clientWidth) return;
      watched.disconnect();
      resolve();
    });
    watched.observe(el);
  });
}

export default {
  async render({ model, el }) {
    const plotly = await loaded(model);
    const box = document.createElement("div");
    el.append(box);
    await placed(el);
    const draw = async () => {
      const { data, layout } = JSON.parse(model.get("_spec"));
      await plotly.react(box, data, { ...layout, autosize: true }, { displaylogo: false, responsive: true });
    };
    await draw();
    const hear = ({ points: [point] }) => {
      const part = "sourceLinks" in point ? ["box"] : "source" in point ? ["band"] : [];
      model.set("clicked", [point.curveNumber, point.pointNumber, ...part]);
      model.save_changes();
    };
    box.on("plotly_click", hear);
    box.on("plotly_treemapclick", hear); // on a box that opens, no other is heard
    const fit = new ResizeObserver(() => { if (box.isConnected && box.offsetWidth) plotly.Plots.resize(box); });
    fit.observe(el);
    model.on("change:_spec", draw);
    return () => { model.off("change:_spec", draw); fit.disconnect(); plotly.purge(box); };
  },
};
