package provision

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// debianKeyring is where the package debian-archive-keyring has the keys.
const debianKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// aptConfig is read after the machine's own configuration, whose proxies and
// the like stay in force. %[1]s is apt's folder in the cache.
//
// The hooks are cleared because they act on the machine: some empty its
// package cache, others tell its desktop. The sandbox user would not get into
// a home folder. Locks are those of dpkg, which takes no part.
const aptConfig = `#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
#clear DPkg::Pre-Install-Pkgs;
#clear APT::Architectures;
#clear APT::NeverAutoRemove;
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Default-Release "";
APT::Install-Recommends "false";
APT::Install-Suggests "false";
APT::Sandbox::User "root";
APT::Update::Error-Mode "any";
APT::Get::AllowUnauthenticated "false";
APT::Get::Assume-Yes "true";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
Acquire::ForceHash "SHA256";
Acquire::GzipIndexes "true";
Acquire::Languages "none";
Acquire::Retries "2";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
Debug::NoLocking "true";
Dir::State "%[1]s/state";
Dir::State::status "%[1]s/status";
Dir::State::Lists "lists";
Dir::Cache "%[1]s/cache";
Dir::Cache::archives "archives";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Dir::Log "%[1]s/log";
Dir::Etc::SourceList "%[1]s/debian.sources";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
`

const aptSources = `Types: deb
URIs: %s
Suites: %s
Components: main
Architectures: amd64
Targets: Packages
Signed-By: %s
`

// debFile is one package file.
type debFile struct {
	Name   string `json:"name"` // of the file
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// prepareApt checks that apt can work here, writes its configuration and
// fetches the lists of packages.
func (c *cache) prepareApt(ctx context.Context) error {
	if c.updated {
		return nil
	}
	if runtime.GOARCH != "amd64" || runtime.GOOS != "linux" {
		return fmt.Errorf("%w, this is %s %s", ErrArch, runtime.GOOS, runtime.GOARCH)
	}
	for _, tool := range []string{"apt-get", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%w (%w)", ErrNoApt, err)
		}
	}
	if _, err := os.Stat(c.keyring); err != nil {
		return fmt.Errorf("%w (%w)", ErrNoKeyring, err)
	}
	if strings.ContainsAny(c.dir, "\"\n;") {
		return fmt.Errorf("the cache folder %q has a character that apt's configuration can't hold", c.dir)
	}
	mirror := c.mirror
	if mirror == "" {
		var err error
		if mirror, err = MachineMirror(ctx); err != nil {
			return err
		}
	}
	if strings.ContainsAny(mirror, " \t\n") {
		return fmt.Errorf("%w, %q is not a URL", ErrNoMirror, mirror)
	}
	for _, dir := range []string{"state/lists/partial", "cache/archives/partial", "none/partial", "log"} {
		if err := os.MkdirAll(c.path("apt", dir), 0o755); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{
		"status":         "",
		"apt.conf":       fmt.Sprintf(aptConfig, c.path("apt")),
		"debian.sources": fmt.Sprintf(aptSources, mirror, c.suites, c.keyring),
	} {
		if err := writeFile(c.path("apt", name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	c.out.step("reading Debian's package lists from %s", mirror)
	if _, err := c.apt(ctx, "", "update"); err != nil {
		return err
	}
	c.updated = true
	return nil
}

// apt runs apt-get and returns its output. With what, it shows how far a
// download has come.
func (c *cache) apt(ctx context.Context, what string, args ...string) (string, error) {
	args = append([]string{"-q", "-c", c.path("apt", "apt.conf")}, args...)
	cmd := command(ctx, "apt-get", args...)
	cmd.Dir = c.path("apt")
	var output, report bytes.Buffer
	cmd.Stderr = &report
	if what == "" {
		cmd.Stdout = &output
		if err := cmd.Run(); err != nil {
			return "", aptFailure(ctx, args[3], report.String()+output.String(), err)
		}
		return output.String(), nil
	}

	status, theirs, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer status.Close()
	cmd.Stdout = &output
	cmd.ExtraFiles = []*os.File{theirs} // is descriptor 3
	cmd.Args = append(cmd.Args, "-o", "APT::Status-Fd=3")
	err = cmd.Start()
	_ = theirs.Close() // else the pipe never ends
	if err != nil {
		return "", err
	}
	c.showDownload(what, status)
	if err := cmd.Wait(); err != nil {
		return "", aptFailure(ctx, args[3], report.String()+output.String(), err)
	}
	return output.String(), nil
}

// showDownload reads apt's status lines "dlstatus:FILE:PERCENT:text" to their end.
func (c *cache) showDownload(what string, status io.Reader) {
	lines := bufio.NewScanner(status)
	for lines.Scan() {
		fields := strings.SplitN(lines.Text(), ":", 4)
		if len(fields) < 3 || fields[0] != "dlstatus" {
			continue
		}
		if percent, err := strconv.ParseFloat(fields[2], 64); err == nil {
			c.out.at(what, int(percent))
		}
	}
	c.out.finish()
}

func aptFailure(ctx context.Context, command, report string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return newAptError(command, report, err)
}

// command prepares a program whose messages we read, so in the C locale, and
// which gets a moment to end by itself when ctx does.
func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

var (
	uriLine = regexp.MustCompile(`^'[^']+' ([^\s_/]+_[^\s_/]+_[a-z0-9]+\.deb) ([0-9]+) SHA256:([0-9a-f]{64})$`)
	// ownSuite is a release of Debian itself, not of one of the archives that
	// others make for it.
	ownSuite = regexp.MustCompile(`^(bullseye|bookworm|trixie|forky|duke|oldoldstable|oldstable|stable|testing|unstable|sid)$`)
)

// resolve returns the files of the set with what they depend on, as far as the
// set wants it.
func (c *cache) resolve(ctx context.Context, s set) ([]debFile, error) {
	// What is in the archives folder already would not be listed.
	args := append([]string{"install", "--print-uris", "-o", "Dir::Cache::archives=" + c.path("apt", "none"), "-t", s.release}, s.packages...)
	output, err := c.apt(ctx, "", args...)
	if err != nil {
		return nil, err
	}
	files, err := parseURIs(output)
	if err != nil {
		return nil, err
	}
	// What the set does not want counts as installed from here on.
	var status strings.Builder
	files = slices.DeleteFunc(files, func(f debFile) bool {
		if strings.HasPrefix(f.Name, s.only) {
			return false
		}
		name, version, arch := f.fields()
		fmt.Fprintf(&status, "Package: %s\nStatus: install ok installed\nArchitecture: %s\nVersion: %s\n\n", name, arch, version)
		return true
	})
	if len(files) == 0 {
		return nil, fmt.Errorf("%w: no package %s*", ErrMissing, s.only)
	}
	return files, writeFile(c.path("apt", "status-"+s.name), []byte(status.String()), 0o644)
}

// fields splits a file's name, NAME_VERSION_ARCH.deb with the colon of the
// version escaped.
func (f debFile) fields() (name, version, arch string) {
	parts := strings.Split(strings.TrimSuffix(f.Name, ".deb"), "_")
	return parts[0], strings.ReplaceAll(parts[1], "%3a", ":"), parts[2]
}

// parseURIs reads the output of apt-get --print-uris: 'URI' FILE SIZE HASH.
func parseURIs(output string) ([]debFile, error) {
	var files []debFile
	for line := range strings.Lines(output) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "'") {
			continue
		}
		m := uriLine.FindStringSubmatch(line)
		if m == nil {
			return nil, fmt.Errorf("%w: apt gives no SHA-256 in %q", ErrSignature, line)
		}
		size, err := strconv.ParseInt(m[2], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("size in %q: %w", line, err)
		}
		files = append(files, debFile{m[1], size, m[3]})
	}
	if len(files) == 0 {
		return nil, errors.New("apt lists no packages")
	}
	return files, nil
}

// MachineMirror returns the Debian mirror of the machine's own apt.
func MachineMirror(ctx context.Context) (string, error) {
	output, err := command(ctx, "apt-get", "indextargets",
		"--format", "$(REPO_URI)|$(ORIGIN)|$(LABEL)|$(RELEASE)|$(COMPONENT)", "Identifier: Packages").Output()
	if err == nil && !bytes.Contains(output, []byte("|")) {
		// apt knows origins from the lists it fetched; where there are none
		// it prints nothing unless told to do without.
		output, err = command(ctx, "apt-get", "indextargets", "--no-release-info",
			"--format", "$(REPO_URI)|$(ORIGIN)|$(LABEL)|$(RELEASE)|$(COMPONENT)", "Identifier: Packages").Output()
	}
	if err != nil {
		return "", fmt.Errorf("%w (apt-get indextargets: %w)", ErrNoMirror, err)
	}
	if mirror := pickMirror(string(output)); mirror != "" {
		return mirror, nil
	}
	return "", ErrNoMirror
}

// pickMirror chooses among lines URI|ORIGIN|LABEL|RELEASE|COMPONENT. A field
// that apt doesn't know stands there as its $(NAME).
func pickMirror(targets string) string {
	for line := range strings.Lines(targets) {
		f := strings.Split(strings.TrimSpace(line), "|")
		if len(f) != 5 || f[4] != "main" || !ownSuite.MatchString(f[3]) {
			continue
		}
		known := !strings.HasPrefix(f[1], "$(")
		if known && f[1] == "Debian" && f[2] == "Debian" ||
			!known && path.Base(f[0]) == "debian" {
			return strings.TrimSuffix(f[0], "/")
		}
	}
	return ""
}

func (c *cache) archive(f debFile) string {
	return filepath.Join(c.path("apt", "cache", "archives"), f.Name)
}
