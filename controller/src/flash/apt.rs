//! Packages of the distribution, for any architecture, by this machine's own apt with a state apart
//! from the machine's: apt verifies what it fetches as it always does, and needs no root for it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use super::sources;
use super::tool::{self, APT_CACHE, APT_GET, DPKG_DEB, Tool};

/// How old the lists of packages may be.
const LISTS_AGE_MAX: Duration = Duration::from_secs(24 * 3600);

/// Packages of one architecture.
pub(crate) struct Apt {
    folder: PathBuf,
}

impl Apt {
    /// Opens the state in `cache`, and makes its lists of packages as new as those of the mirror,
    /// where they are older than a day. `sources` overrules which sources those are.
    ///
    /// # Errors
    /// When this machine has no sources of a Debian release, or there are no lists.
    pub(crate) fn open(cache: &Path, arch: &str, sources: Option<&Path>) -> anyhow::Result<Self> {
        let folder = cache.join("apt").join(arch);
        let made = ["lists/partial", "archives/partial", "sources"];
        for folder in made.map(|name| folder.join(name)) {
            fs::create_dir_all(&folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let apt = Self { folder };
        let sources = match sources {
            Some(file) => fs::read_to_string(file)
                .with_context(|| format!("cannot read {}", file.display()))?,
            None => sources_of_this_machine()?,
        };
        let known = apt.folder.join("sources/debian.sources");
        let same = fs::read_to_string(&known).is_ok_and(|text| text == sources);
        fs::write(&known, sources)?;
        fs::write(apt.folder.join("status"), "")?;
        fs::write(apt.folder.join("apt.conf"), apt.configuration(arch))?;
        apt.update(same)?;
        Ok(apt)
    }

    /// Read after the machine's own configuration, of which it keeps all but where things are.
    fn configuration(&self, arch: &str) -> String {
        let folder = self.folder.display();
        format!(
            r#"#clear DPkg::Post-Invoke;
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Architectures;
#clear Acquire::IndexTargets;
Acquire::IndexTargets::deb::Packages {{
  MetaKey "$(COMPONENT)/binary-$(ARCHITECTURE)/Packages";
  flatMetaKey "Packages";
  ShortDescription "Packages";
  Description "$(RELEASE)/$(COMPONENT) $(ARCHITECTURE) Packages";
}};
APT::Architecture "{arch}";
APT::Architectures {{ "{arch}"; }};
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Debug::NoLocking "true";
Dir::State "{folder}";
Dir::State::lists "{folder}/lists";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}";
Dir::Cache::archives "{folder}/archives";
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "{folder}/sources";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
"#
        )
    }

    fn get(&self, arguments: &[&str], packages: &BTreeSet<String>) -> anyhow::Result<String> {
        self.ask(APT_GET, arguments, packages)
    }

    fn ask(
        &self,
        tool: Tool,
        arguments: &[&str],
        packages: &BTreeSet<String>,
    ) -> anyhow::Result<String> {
        let mut command = tool.call()?;
        command.current_dir(self.folder.join("archives"));
        command.arg("-c").arg(self.folder.join("apt.conf")).args(arguments).args(packages);
        tool::run(&mut command)
    }

    fn update(&self, same_sources: bool) -> anyhow::Result<()> {
        let stamp = self.folder.join("updated");
        let age = fs::metadata(&stamp).and_then(|file| file.modified()).ok();
        let young = age.and_then(|time| time.elapsed().ok()).is_some_and(|age| age < LISTS_AGE_MAX);
        if same_sources && young {
            return Ok(());
        }
        match self.get(&["-q", "update"], &BTreeSet::new()) {
            Ok(_) => Ok(fs::write(&stamp, "")?),
            // An index that cannot be had may be one that is not needed, or an older one may do.
            Err(error) => {
                log_line(&format!("going on with what lists of packages there are: {error:#}"));
                Ok(())
            }
        }
    }

    /// These packages with all that they depend on.
    ///
    /// # Errors
    /// When there is no such package, or something that it depends on is not to be had.
    pub(crate) fn closure(&self, packages: &[&str]) -> anyhow::Result<BTreeSet<String>> {
        let packages = packages.iter().map(|&name| name.to_owned()).collect();
        let plan = self.get(&["-s", "-y", "install"], &packages)?;
        let words = plan.lines().filter_map(|line| line.strip_prefix("Inst "));
        Ok(words.filter_map(|rest| rest.split_whitespace().next()).map(str::to_owned).collect())
    }

    /// Fetches what of these packages is not here yet, and gives their files.
    ///
    /// # Errors
    /// When one cannot be had, or is not what the distribution has signed.
    pub(crate) fn fetch(&self, packages: &BTreeSet<String>) -> anyhow::Result<Vec<PathBuf>> {
        self.get(&["-qq", "download"], packages).context(
            "cannot fetch packages (do the sources name Debian's component non-free-firmware, where \
             firmware of boards is?)",
        )?;
        let shown = self.ask(APT_CACHE, &["show", "--no-all-versions"], packages)?;
        let names = shown.split("\n\n").filter_map(file_name);
        let files: Vec<_> = names.map(|name| self.folder.join("archives").join(name)).collect();
        let missing = files.iter().find(|file| !file.is_file());
        anyhow::ensure!(
            missing.is_none() && files.len() == packages.len(),
            "apt-get has not fetched what apt-cache shows: try again"
        );
        Ok(files)
    }
}

/// What apt calls the file of a package that it shows.
fn file_name(shown: &str) -> Option<String> {
    let field = |key| shown.lines().find_map(|line| line.strip_prefix(key));
    let (name, version) = (field("Package: ")?, field("Version: ")?.replace(':', "%3a"));
    Some(format!("{name}_{version}_{}.deb", field("Architecture: ")?))
}

/// What the package of a file has in it goes into a folder.
///
/// # Errors
/// When it cannot be unpacked.
pub(crate) fn extract(package: &Path, folder: &Path) -> anyhow::Result<()> {
    tool::run(DPKG_DEB.call()?.arg("-x").arg(package).arg(folder))?;
    Ok(())
}

fn sources_of_this_machine() -> anyhow::Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let codename = codename.context("/etc/os-release has no VERSION_CODENAME")?.trim_matches('"');
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(folder) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(folder.flatten().map(|entry| entry.path()));
    }
    files.sort();
    let is_read = |path: &PathBuf| {
        path.extension().is_some_and(|extension| extension == "list" || extension == "sources")
    };
    let texts = files.into_iter().filter(is_read).filter_map(|path| {
        let text = fs::read_to_string(&path).ok()?;
        Some((path.display().to_string(), text))
    });
    let sources = sources::of_release(&texts.collect::<Vec<_>>(), codename);
    anyhow::ensure!(
        !sources.is_empty(),
        "the package sources of this machine name no Debian {codename}: say `--sources FILE`, with a \
         file in the format of /etc/apt/sources.list.d/debian.sources that does"
    );
    Ok(sources)
}

/// One line for a person who watches.
pub(crate) fn log_line(text: &str) {
    use std::io::Write;
    // Nobody may watch.
    let _ = writeln!(std::io::stderr(), "{text}");
}
