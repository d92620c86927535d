// What preflight's numbers mean in words, and when a queued run would start.

import { compact, duration, percent } from "./format.js";
import { t, tn } from "./i18n.js";

/** Where a decoder's parameters are; the same sums as minimind.presets. */
export function parameterParts(model) {
  const width = model.hidden_size;
  const layers = model.num_hidden_layers;
  const heads = 2 * model.num_attention_heads + 2 * model.num_key_value_heads;
  const experts = model.num_experts ?? 0;
  const swiglus = experts ? experts + model.num_shared_experts : 1;
  const norms = layers * (2 * width + (model.qk_norm ? 2 * model.head_dim : 0)) + width;
  return [
    { label: t("embeddings"), value: model.vocab_size * width * (model.tie_word_embeddings ? 1 : 2) },
    { label: t("attention"), value: layers * width * model.head_dim * heads },
    { label: t("feed-forward"), value: layers * width * (3 * model.intermediate_size * swiglus + experts) },
    { label: t("norms"), value: norms },
  ];
}

export function memoryParts(memory) {
  const words = { weights: t("weights"), gradients: t("gradients"), optimizer: t("optimizer"),
                  activations: t("activations"), teacher: t("teacher") };
  return Object.entries(memory).map(([name, value]) => ({ label: words[name] ?? name, value }));
}

/** What a stage does besides a plain step, in a sentence; empty where there is nothing. `answer`: of POST /preflight. */
export function ownNeeds(answer) {
  if (answer.parameters !== null && answer.trainable_parameters < answer.parameters) {
    return t("%(learnt)s numbers are learnt, %(share)s of the model; the others are frozen and need neither gradients nor an optimizer.", {
      learnt: compact(answer.trainable_parameters), share: percent(answer.trainable_parameters / answer.parameters) });
  }
  if (answer.sequences_per_example === 2) {
    const pair = t("Each pair is two sequences, read one behind the other.");
    if (answer.reference_flops === null) return pair;
    const once = t("Before step 1 the base checkpoint reads all of them once: %(count)s operations.", { count: compact(answer.reference_flops) });
    return `${pair} ${once}`;
  }
  if (answer.teacher_parameters !== null) {
    const who = t("The teacher has %(count)s parameters and reads every token too.", { count: compact(answer.teacher_parameters) });
    if (answer.teacher_flops === null) return who;
    const part = t("That is %(share)s of all operations.", { share: percent(answer.teacher_flops / answer.total_flops) });
    return `${who} ${part}`;
  }
  return "";
}

/** FLOPs as an amount that one can imagine: how long a device of a known speed works on them. */
export function work(flops) {
  const [speed, device] = flops > 3.6e16 ? [1e14, t("a large GPU at 100 trillion a second")]
    : [1e11, t("a laptop at 100 billion a second")];
  return t("%(count)s operations: %(time)s of work for %(device)s.", {
    count: compact(flops), time: duration(Math.max(1, flops / speed)), device });
}

/** Which devices of a host a request would get now; the rule of app/core/devices.py. */
function fits(host, devices, taken) {
  const cpus = Array.from({ length: host.cpu_slots }, (_, i) => `cpu:${i}`);
  const gpus = host.devices.map((device) => device.id);
  let wanted;
  let count;
  if (devices === "auto") [wanted, count] = gpus.length ? [gpus, 1] : [cpus, cpus.length];
  else if (Array.isArray(devices)) [wanted, count] = [devices.filter((d) => cpus.includes(d) || gpus.includes(d)), devices.length];
  else if (devices.kind === "cuda") [wanted, count] = [gpus, devices.count];
  else [wanted, count] = [cpus, Math.min(devices.count, cpus.length)];
  return count > 0 && wanted.filter((device) => !taken.has(device)).length >= count;
}

/** When a run with these devices would start, as a sentence. `machines`: hosts and counts of runs, as GET /system. */
export function outlook(machines, devices) {
  const alive = machines.hosts.filter((host) => host.is_alive && !host.draining);
  const queued = machines.runs.queued ?? 0;
  if (!alive.length) {
    return { waits: true, text: t("No worker is running now: it will wait in the queue until one starts. ./studio up starts one.") };
  }
  if (!alive.some((host) => fits(host, devices, new Set()))) {
    return { waits: true, text: t("No machine that is on has these devices: it will wait in the queue for one that has.") };
  }
  const free = alive.find((host) => fits(host, devices, new Set(host.in_use.map((lease) => lease.device))));
  if (!free) {
    const behind = queued ? " " + tn("One run is in the queue already.", "%(num)s runs are in the queue already.", queued) : "";
    return { waits: true, text: t("Its devices are busy: it will wait in the queue until they are free.") + behind };
  }
  if (queued) return { waits: true, text: tn("One run is in the queue already; larger priority goes first.", "%(num)s runs are in the queue already; larger priority goes first.", queued) };
  return { waits: false, text: t("Ready. It starts at once on %(name)s.", { name: free.name }) };
}

/** Whether these numbers are for GPUs, and the most memory one of them has. */
export function gpuMemory(machines, devices) {
  const gpus = machines.hosts.flatMap((host) => host.devices);
  const isGpu = devices === "auto" ? gpus.length > 0
    : Array.isArray(devices) ? devices[0].startsWith("cuda") : devices.kind === "cuda";
  return isGpu ? Math.max(0, ...gpus.map((gpu) => gpu.memory_bytes ?? 0)) || null : null;
}
