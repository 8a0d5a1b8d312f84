/* The text of a calibration file, as the tooltip of DPM-Solver Calibrated's menu, before any run. */
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

async function textOf(name) {
    try {
        const answer = await api.fetchApi(`/dpm_solver/calibration?name=${encodeURIComponent(name)}`);
        return answer.ok ? await answer.json() : "";
    } catch {
        return "";
    }
}

/* An empty tooltip leaves the one of the node's definition. */
async function explain(widget) {
    const name = widget.value;
    const text = await textOf(name);
    if (widget.value === name) widget.tooltip = text || undefined;
}

app.registerExtension({
    name: "DPMSolver.Calibrations",
    nodeCreated(node) {
        if (node.comfyClass !== "DPMSolver_Calibrated") return;
        const widget = node.widgets?.find((one) => one.name === "calibration");
        if (!widget) return;
        const { callback } = widget;
        widget.callback = function (...given) {
            explain(widget);
            return callback?.apply(this, given);
        };
        const { onConfigure } = node;
        node.onConfigure = function (...given) {
            explain(widget);
            return onConfigure?.apply(this, given);
        };
        explain(widget);
    },
});
