//! Runs labs: every step of every scenario in the simulator and on the kernel, in lockstep.
//!
//! Scenarios that want the same nodes with the same settings share a world, one after the other: between two of them the
//! agents see a cluster of nodes only, so that nothing of the first is left for the second.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use agent_core::input::Report as InputReport;
use agent_core::model::{Object, read_documents};
use agent_core::{InputErrors, Model, Settings, yaml};
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use datapath_kernel::TestNet;
use simulator::cluster::matrix::{declared_ports, endpoints};
use simulator::cluster::scenario::{Action, Config, Done, Runner, Scenario, load};
use simulator::cluster::tunnel::Protocol;
use simulator::cluster::{Cluster, Options};
use simulator::manifests::PassedOver;

use crate::capture::{self, Capture};
use crate::checks::Check;
use crate::lockstep::{Line, node_name, note, one, probe_step};
use crate::manifest::{self, Documents};
use crate::prober::{Prober, Simulated};
use crate::registry::Run;
use crate::report::Report;
use crate::topology::{Lab, Topology};
use crate::world::World;

/// Longest time that a scenario may let pass here.
const LONGEST_ADVANCE: Duration = Duration::from_secs(2);

/// What a scenario, a matrix or a check came to.
#[derive(Clone, Debug, Default)]
pub struct Finished {
    /// Its file, or its name.
    pub name: String,
    /// Probes done on both.
    pub probes: u64,
    /// Answers that differ from each other or from what was expected, one line each.
    pub differences: Vec<String>,
    /// Every probe, one line each.
    pub lines: Vec<String>,
    /// Why it could not be run to its end.
    pub error: Option<String>,
    /// Why it is not run here.
    pub skipped: Option<String>,
    /// How long it took.
    pub took: Duration,
}

impl Finished {
    /// Whether it ran and everything was as it should be.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.differences.is_empty() && self.error.is_none() && self.skipped.is_none()
    }
}

/// What a lab came to.
#[derive(Clone, Debug, Default)]
pub struct LabReport {
    /// The lab.
    pub name: String,
    /// Its scenarios, in order.
    pub finished: Vec<Finished>,
    /// How long each of its worlds took to build.
    pub up: Vec<Duration>,
    /// All of it.
    pub took: Duration,
    /// Most memory of an agent, in bytes, when its world was taken down.
    pub resident: u64,
}

/// What is told while a lab runs.
#[derive(Clone, Copy, Debug)]
pub enum Told<'a> {
    /// So many scenarios, matrices and checks will run.
    Begins(usize),
    /// This is what happens now.
    Does(&'a str),
    /// One is done.
    Ended(&'a Finished),
}

/// Something to run.
enum Task<'a> {
    Scenario(Box<Scenario>),
    Check(&'static Check, Model),
    Matrix(&'a [PathBuf], Box<Scenario>),
}

/// How labs are run.
#[derive(Clone, Debug, Default)]
pub struct How {
    /// Folder for captures of scenarios that do not pass.
    pub captures: Option<PathBuf>,
}

struct Session<'a> {
    lab: &'a Lab,
    how: &'a How,
    world: Option<World>,
    prober: Prober,
    report: LabReport,
    tell: &'a mut dyn FnMut(Told<'_>),
}

/// Runs a lab.
pub fn run(lab: &Lab, how: &How, tell: &mut dyn FnMut(Told<'_>)) -> LabReport {
    let began = Instant::now();
    let report = LabReport { name: lab.name.clone(), ..LabReport::default() };
    let mut session = Session { lab, how, world: None, prober: Prober::default(), report, tell };
    let tasks = session.tasks();
    (session.tell)(Told::Begins(tasks.len()));
    let missing = session.missing();
    for task in tasks {
        session.task(&task, &missing);
    }
    session.take_down();
    session.report.took = began.elapsed();
    session.report
}

/// Builds the world of a lab's first scenario, or else matrix or check.
///
/// # Errors
/// What is wrong with the lab, or with the machine.
pub fn up(lab: &Lab, run: Run) -> Result<World> {
    let mut tell = |_: Told<'_>| {};
    let (report, how) = (LabReport::default(), How::default());
    let mut session = Session { lab, how: &how, world: None, prober: Prober::default(), report, tell: &mut tell };
    let task = session.tasks().into_iter().next();
    if let Some(wrong) = session.report.finished.iter().find_map(|finished| finished.error.as_ref()) {
        anyhow::bail!("{wrong}");
    }
    let (model, text, config) = match task.context("this lab has nothing to run")? {
        Task::Scenario(scenario) | Task::Matrix(_, scenario) => {
            let runner = Runner::new(&scenario, &Options::default(), false)?;
            let documents = Documents::new(&scenario.documents);
            (runner.cluster().model().clone(), text_of(&documents, runner.cluster().model())?, scenario.config.clone())
        }
        Task::Check(check, model) => (model, check.cluster.to_owned(), lab.topology.adapt(Topology::default().config)),
    };
    World::build(run, &model, &text, Topology { config, ..lab.topology.clone() })
}

fn text_of(documents: &Documents, model: &Model) -> Result<String> {
    documents.file(&model.objects().to_vec()).context("an object of the scenario without a document")
}

impl<'a> Session<'a> {
    /// What is to be run, with equal topologies beside each other. What cannot be read is in the report.
    fn tasks(&mut self) -> Vec<Task<'a>> {
        let lab = self.lab;
        let mut keyed: Vec<(Model, Config, Task<'a>)> = Vec::new();
        for file in &lab.scenarios {
            let name = file_name(file);
            if let Some(skip) = lab.skips.iter().find(|skip| skip.scenario == name) {
                self.report.finished.push(Finished { name, skipped: Some(skip.reason.clone()), ..Finished::default() });
                continue;
            }
            match load(file).map_err(anyhow::Error::from).and_then(|scenario| Ok((start_model(&scenario)?, scenario))) {
                Ok((model, mut scenario)) => {
                    scenario.config = lab.topology.adapt(scenario.config);
                    keyed.push((model, scenario.config.clone(), Task::Scenario(Box::new(scenario))))
                }
                Err(error) => {
                    let error = Some(format!("{error:#}"));
                    self.report.finished.push(Finished { name, error, ..Finished::default() });
                }
            }
        }
        let mut special = |name: &str, task: Result<(Model, Config, Task<'a>)>| match task {
            Ok(task) => Some(task),
            Err(error) => {
                let error = Some(format!("{error:#}"));
                self.report.finished.push(Finished { name: name.to_owned(), error, ..Finished::default() });
                None
            }
        };
        for check in &lab.checks {
            let model = Model::parse(&[(check.name.to_owned(), check.cluster.to_owned())], Settings::default());
            let config = lab.topology.adapt(Topology::default().config);
            let task = model.map(|model| (model.clone(), config, Task::Check(check, model)));
            keyed.extend(special(check.name, task.map_err(anyhow::Error::from)));
        }
        if !lab.matrix.is_empty() {
            let scenario = matrix_scenario(&lab.matrix, lab.topology.adapt(Topology::default().config));
            let task = scenario.and_then(|scenario| Ok((start_model(&scenario)?, scenario.config.clone(), scenario)));
            match task {
                Ok((model, config, scenario)) => {
                    keyed.push((model, config, Task::Matrix(&lab.matrix, Box::new(scenario))));
                }
                Err(error) => {
                    let (name, error) = ("matrix".to_owned(), Some(format!("{error:#}")));
                    self.report.finished.push(Finished { name, error, ..Finished::default() });
                }
            }
        }
        // Stable, by the first of each kind.
        let mut kinds: Vec<(Model, Config)> = Vec::new();
        let mut sorted: Vec<(usize, Task<'a>)> = Vec::new();
        for (model, config, task) in keyed {
            let found = kinds.iter().position(|(known, set)| *set == config && same_nodes(known, &model));
            let kind = found.unwrap_or_else(|| {
                kinds.push((model, config));
                kinds.len() - 1
            });
            sorted.push((kind, task));
        }
        sorted.sort_by_key(|(kind, _)| *kind);
        sorted.into_iter().map(|(_, task)| task).collect()
    }

    /// What the lab needs and this kernel does not have: `Ok(Some(line))` is a declared skip.
    fn missing(&self) -> Result<Option<String>> {
        if self.lab.topology.protocol != Some(Protocol::Geneve) {
            return Ok(None);
        }
        let place = TestNet::new()?;
        let _inside = place.enter()?;
        let made = Command::new("ip").args(["link", "add", "probe", "type", "geneve", "external"]).output()?;
        let said = String::from_utf8_lossy(&made.stderr);
        match made.status.success() {
            true => Ok(None),
            false if said.contains("Unknown device type") => Ok(Some("skip: geneve: not in this kernel".to_owned())),
            false => bail!("making a geneve device: {said}"),
        }
    }

    fn task(&mut self, task: &Task<'_>, missing: &Result<Option<String>>) {
        let began = Instant::now();
        let mut finished = Finished { name: task_name(task), ..Finished::default() };
        (self.tell)(Told::Does(&format!("{}: {}", self.lab.name, finished.name)));
        let ended = match task {
            _ if missing.is_err() => missing.as_ref().map(|_| ()).map_err(|error| anyhow!("{error:#}")),
            _ if let Ok(Some(line)) = missing => {
                finished.skipped = Some(line.clone());
                Ok(())
            }
            Task::Scenario(scenario) => match too_long(scenario) {
                Some(reason) => {
                    finished.skipped = Some(reason);
                    Ok(())
                }
                None => self.scenario(scenario, &mut finished),
            },
            Task::Check(check, model) => self.check(check, model, &mut finished),
            Task::Matrix(_, scenario) => self.matrix(scenario, &mut finished),
        };
        if let Err(error) = ended {
            finished.error = Some(format!("{error:#}"));
            // Whatever state it is in, the next one gets another.
            self.take_down();
        }
        finished.took = began.elapsed();
        (self.tell)(Told::Ended(&finished));
        self.report.finished.push(finished);
    }

    /// The world with these objects, built or changed.
    fn world(&mut self, model: &Model, text: &str, config: Config) -> Result<&mut World> {
        let topology = Topology { config, ..self.lab.topology.clone() };
        let usable = self.world.as_ref().is_some_and(|world| world.has_nodes(model) && *world.topology() == topology);
        if !usable {
            self.take_down();
            let began = Instant::now();
            let world = World::build(Run::begin(None)?, model, text, topology)?;
            self.report.up.push(began.elapsed());
            return Ok(self.world.insert(world));
        }
        let world = self.world.as_mut().context("no world")?;
        world.forget_outside()?;
        // Agents keep the addresses that they gave to pods; the scenario begins with a cluster that gave none.
        let mut after = world.model().clone();
        let kept = after.replace(model.objects().to_vec()).is_ok() && same_pods(&after, model);
        if !kept {
            let bare = manifest::nodes(model.nodes());
            let nodes = Model::parse(&[("lab.yaml".to_owned(), bare.clone())], Settings::default())?;
            world.change(&nodes, &bare)?;
        }
        world.change(model, text)?;
        world.forget_flows()?;
        Ok(world)
    }

    fn take_down(&mut self) {
        let Some(world) = self.world.take() else { return };
        for node in world.nodes() {
            let resident = world.agent(node).ok().and_then(|agent| agent.resident());
            self.report.resident = self.report.resident.max(resident.unwrap_or(0));
        }
    }

    fn scenario(&mut self, scenario: &Scenario, finished: &mut Finished) -> Result<()> {
        let documents = Documents::new(&scenario.documents);
        let mut runner = Runner::new(scenario, &Options::default(), true)?;
        let text = text_of(&documents, runner.cluster().model())?;
        self.world(runner.cluster().model(), &text, scenario.config.clone())?;
        let captures = self.start_captures()?;
        let ended = self.steps(&mut runner, &documents, finished);
        self.keep_captures(captures, finished, ended.is_err())?;
        ended
    }

    /// A capture on every device between pods and nodes, if any are to be kept.
    fn start_captures(&self) -> Result<Vec<Capture>> {
        let Some(world) = self.world.as_ref().filter(|_| self.how.captures.is_some()) else { return Ok(Vec::new()) };
        world.places().map(|place| Capture::start(place, "eth0")).collect()
    }

    fn keep_captures(&self, captures: Vec<Capture>, finished: &Finished, failed: bool) -> Result<()> {
        // Devices of pods that went with a step are gone, and their captures with them.
        let recordings: Vec<_> = captures.into_iter().filter_map(|capture| capture.stop().ok()).collect();
        let Some(folder) = self.how.captures.as_ref().filter(|_| failed || !finished.differences.is_empty()) else {
            return Ok(());
        };
        std::fs::create_dir_all(folder)?;
        let path = folder.join(format!("{}-{}.pcapng", self.lab.name, finished.name.trim_end_matches(".yaml")));
        capture::save(&path, &recordings).with_context(|| path.display().to_string())
    }

    fn steps(&mut self, runner: &mut Runner<'_>, documents: &Documents, finished: &mut Finished) -> Result<()> {
        while let Some(done) = runner.step()? {
            let world = self.world.as_mut().context("no world")?;
            match &done.what {
                Done::Changed => {
                    let model = runner.cluster().model();
                    world.change(model, &text_of(documents, model)?)?;
                }
                Done::Advanced(ns) => thread::sleep(Duration::from_nanos(*ns)),
                Done::Probed(probed) => {
                    probe_step(world, &mut self.prober, runner.cluster(), &done, probed, finished)?;
                }
            }
        }
        self.contradictions(finished)
    }

    /// What got through and was reported as dropped all the same.
    fn contradictions(&mut self, finished: &mut Finished) -> Result<()> {
        let world = self.world.as_ref().context("no world")?;
        finished.differences.extend(self.prober.finish(world.watch())?);
        let lost = world.watch().lost();
        ensure!(lost == 0, "{lost} reports of agents were lost: the lab is too slow for its own probes");
        Ok(())
    }

    fn check(&mut self, check: &Check, model: &Model, finished: &mut Finished) -> Result<()> {
        let config = self.lab.topology.adapt(Topology::default().config);
        let world = self.world(model, check.cluster, config)?;
        let mut report = Report::default();
        (check.look)(world, &mut report)?;
        for (what, wrong) in report.checks() {
            finished.probes += 1;
            match wrong {
                None => finished.lines.push(format!("ok: {what}")),
                Some(wrong) => finished.differences.push(format!("{what}: {wrong}")),
            }
        }
        let name = &finished.name;
        let skipped =
            |line: &String| Finished { name: name.clone(), skipped: Some(line.clone()), ..Finished::default() };
        self.report.finished.extend(report.skips().iter().map(skipped));
        Ok(())
    }

    /// Every pod and the world to every pod and the world, on every port that a pod declares.
    fn matrix(&mut self, scenario: &Scenario, finished: &mut Finished) -> Result<()> {
        let documents = Documents::new(&scenario.documents);
        let model = start_model(scenario)?;
        self.world(&model, &text_of(&documents, &model)?, scenario.config.clone())?;
        let mut cluster = Cluster::new(
            model.clone(),
            Options { tunnel: scenario.config.tunnel, policy: scenario.config.policy.clone(), ..Options::default() },
        )?;
        let parties = endpoints(&model);
        for protocol in declared_ports(&model) {
            for (from, to) in parties.iter().flat_map(|from| parties.iter().map(move |to| (from, to))) {
                if from == to {
                    continue;
                }
                // Ends without a family in common are not asked.
                let Ok(probe) = cluster.probe_between(from, to, protocol, None) else { continue };
                let outcome = cluster.probe(&probe)?;
                let world = self.world.as_mut().context("no world")?;
                let simulated = Simulated::new(&outcome, |node| node_name(&cluster, node));
                let seen = one(world, &mut self.prober, &cluster, &probe, &simulated)?;
                finished.probes += 1;
                let line = Line { from, to, probe: &probe, simulated: &simulated, seen: &seen, expected: "the same" };
                note(finished, &line, simulated.is(&seen), 1);
            }
        }
        self.contradictions(finished)
    }
}

fn task_name(task: &Task<'_>) -> String {
    match task {
        Task::Scenario(scenario) => file_name(Path::new(&scenario.file)),
        Task::Check(check, _) => check.name.to_owned(),
        Task::Matrix(files, _) => {
            let folder = files.first().and_then(|file| file.parent()).map(file_name);
            format!("matrix of {}", folder.unwrap_or_default())
        }
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Why a scenario takes too long for real time.
fn too_long(scenario: &Scenario) -> Option<String> {
    let advance = |action: &Action| match action {
        Action::Advance(ns) => Duration::from_nanos(*ns),
        Action::Probe(_) | Action::Apply(_) | Action::Delete(_) => Duration::ZERO,
    };
    let all: Duration = scenario.steps.iter().map(|step| advance(&step.action)).sum();
    (all > LONGEST_ADVANCE).then(|| format!("{} s pass in it, and here time is real", all.as_secs()))
}

fn same_nodes(one: &Model, other: &Model) -> bool {
    let key = |model: &Model| -> Vec<_> {
        model.nodes().iter().map(|node| (node.name.clone(), node.addresses.clone(), node.pod_cidrs.clone())).collect()
    };
    key(one) == key(other)
}

fn same_pods(one: &Model, other: &Model) -> bool {
    let key = |model: &Model| -> Vec<_> {
        let pods = model.pods().values();
        pods.map(|pod| (pod.name.clone(), pod.node.clone(), pod.addresses.clone(), pod.host_network)).collect()
    };
    key(one) == key(other)
}

fn start_model(scenario: &Scenario) -> Result<Model> {
    let settings = Settings { ipv4: scenario.config.ipv4, ipv6: scenario.config.ipv6 };
    Ok(Model::from_objects(scenario.objects.clone(), settings)?)
}

/// Manifests as a scenario without steps.
fn matrix_scenario(files: &[PathBuf], config: Config) -> Result<Scenario> {
    let mut documents = Vec::new();
    for file in files {
        let shown = file.display().to_string();
        let text = std::fs::read_to_string(file).with_context(|| shown.clone())?;
        documents.extend(yaml::parse(&shown, &text).map_err(|error| InputErrors(vec![error]))?);
    }
    let mut report = InputReport::default();
    let objects: Vec<Object> = read_documents(&documents, &mut report);
    Ok(Scenario {
        file: files.first().map(|file| file.display().to_string()).unwrap_or_default(),
        name: "matrix".to_owned(),
        source: None,
        objects: report.finish(objects)?,
        documents,
        passed: PassedOver::default(),
        config,
        steps: Vec::new(),
    })
}
