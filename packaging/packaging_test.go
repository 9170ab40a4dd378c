// Package packaging holds what the deb and rpm are made from. The tests build them, install the deb into a clean Debian system and boot machines of it.
package packaging

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coloctl/coloctl/internal/machine"
)

// work is shared by the tests of one run: the packages, and a system with the deb in it.
var work struct {
	dir     string
	build   sync.Once
	out     string // where the packages are
	system  sync.Once
	sysPath string
	err     error
}

func TestMain(m *testing.M) {
	var err error
	// Not in memory: a system has half a gigabyte.
	if work.dir, err = os.MkdirTemp("/var/tmp", "coloctl-packaging-"); err != nil {
		panic(err)
	}
	code := m.Run()
	if err := os.RemoveAll(work.dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

func run(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out.String())
	}
	return out.String()
}

// names are the packages that are built, each as deb and rpm.
var names = []string{"coloctl", "coloctl-etcd", "coloctl-ansible"}

// packages builds all of them once, and returns the one of a name and kind.
func packages(t *testing.T, name, kind string) string {
	t.Helper()
	work.build.Do(func() {
		out := filepath.Join(work.dir, "dist")
		run(t, exec.CommandContext(t.Context(), "./build", out))
		work.out = out
	})
	if work.out == "" {
		t.Fatal("the packages were not built")
	}
	sep := map[string]string{"deb": "_", "rpm": "-[0-9]"}[kind]
	return only(t, work.out, name+sep+"*."+kind)
}

func only(t *testing.T, dir, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(found) != 1 {
		t.Fatalf("%s in %s: %q, %v", pattern, dir, found, err)
	}
	return found[0]
}

func sum(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(data))
}

// TestReproducible builds the same source again: in another folder, at another time, with another umask and time zone.
func TestReproducible(t *testing.T) {
	packages(t, names[0], "deb")
	copied, out := t.TempDir(), t.TempDir()
	run(t, exec.CommandContext(t.Context(), "sh", "-c", `cd .. && git ls-files -z --cached --others --exclude-standard | tar --null --files-from=- --ignore-failed-read -c | tar -C "$0" -x --touch`, copied))
	git := func(args ...string) string {
		return strings.TrimSpace(run(t, exec.CommandContext(t.Context(), "git", args...)))
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `umask 077 && exec packaging/build "$0"`, out)
	cmd.Dir = copied
	cmd.Env = append(os.Environ(), "VERSION="+git("describe", "--tags", "--always", "--dirty"), "SOURCE_DATE_EPOCH="+git("log", "-1", "--format=%ct"),
		"TZ=Asia/Kathmandu", "LC_ALL=C.UTF-8")
	run(t, cmd)
	for _, name := range names {
		for _, kind := range []string{"deb", "rpm"} {
			f := packages(t, name, kind)
			again := filepath.Join(out, filepath.Base(f))
			if sum(t, f) != sum(t, again) {
				t.Errorf("%s: %s the first time, then %s", filepath.Base(f), sum(t, f), sum(t, again))
			}
		}
	}
}

// TestContents looks into the deb without installing it.
func TestContents(t *testing.T) {
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		t.Skip("no dpkg-deb here")
	}
	deb := packages(t, "coloctl", "deb")
	list := run(t, exec.CommandContext(t.Context(), "dpkg-deb", "-c", deb))
	for _, want := range []string{
		"-rwxr-xr-x root/root", "./usr/bin/coloctl\n", "./usr/bin/colod\n", "./usr/libexec/coloctl/guest-init\n", "./usr/lib/systemd/system/colod.service\n",
		"./usr/lib/systemd/system/colod-witness.service\n", "./usr/share/man/man8/coloctl.8.gz\n", "./usr/share/man/man8/colod.8.gz\n",
		"./usr/share/bash-completion/completions/coloctl\n", "./usr/share/doc/coloctl/examples/daemon/n1.yaml\n", "./usr/share/doc/coloctl/copyright\n",
	} {
		if !strings.Contains(list, want) {
			t.Errorf("missing: %q", want)
		}
	}
	control := run(t, exec.CommandContext(t.Context(), "dpkg-deb", "-I", deb))
	if !strings.Contains(control, "conffiles") || !strings.Contains(control, "Recommends: qemu-system-x86") {
		t.Error(control)
	}
	for name, files := range map[string][]string{
		"coloctl-etcd": {"./usr/bin/colod-etcd\n", "./usr/lib/systemd/system/colod.service.d/etcd.conf\n"},
		"coloctl-ansible": {
			"/coloctl/coloctl/galaxy.yml\n", "/coloctl/coloctl/plugins/modules/colo_vm\n", "/coloctl/coloctl/plugins/modules/colo_vm.yml\n",
			"/coloctl/coloctl/playbooks/rolling_patch.yml\n", "/coloctl/coloctl/roles/node/tasks/main.yml\n",
		},
	} {
		list := run(t, exec.CommandContext(t.Context(), "dpkg-deb", "-c", packages(t, name, "deb")))
		for _, want := range files {
			if !strings.Contains(list, want) {
				t.Errorf("%s lacks %q", name, want)
			}
		}
		if strings.Contains(list, " -> ") {
			t.Errorf("%s has a link, to what it may not have: %s", name, list)
		}
	}
}

// system is a clean Debian with the deb in it, installed as docs/quick-start.md says.
func system(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes a Debian system")
	}
	deb := packages(t, "coloctl", "deb")
	work.system.Do(func() {
		begun := time.Now()
		dir := filepath.Join(work.dir, "system")
		if made := os.Getenv("COLOCTL_TEST_SYSTEM"); made != "" {
			dir = made // of an earlier run, for who works on these tests
		} else if work.err = machine.Make(t.Context(), dir, machine.Options{
			Release: "trixie", Packages: []string{"iproute2", "openssh-server", "openssh-client", "curl", "e2fsprogs"},
		}); work.err != nil {
			return
		}
		t.Logf("a clean system after %v", time.Since(begun).Round(time.Second))
		run(t, exec.CommandContext(t.Context(), "sh", "-c", `rm -f "$1"/coloctl_*.deb && cp "$0" "$1"`, deb, filepath.Join(dir, "root")))
		block := guideBlock(t, "install")
		out, err := machine.Chroot(t.Context(), dir, "sh", "-exc", "cd /root\napt-get -qq update\n"+strings.ReplaceAll(block, "apt install", "apt-get -qq -y install")).CombinedOutput()
		if err != nil {
			work.err = fmt.Errorf("install: %w\n%s", err, out)
			return
		}
		t.Logf("the package and what it wants after %v", time.Since(begun).Round(time.Second))
		work.sysPath = dir
	})
	if errors.Is(work.err, machine.ErrMissing) && os.Getenv("CI") != "true" {
		t.Skip(work.err)
	}
	if work.err != nil || work.sysPath == "" {
		t.Fatalf("no system: %v", work.err)
	}
	return work.sysPath
}

// TestInstalled: what the package put there works, and systemd likes its units.
func TestInstalled(t *testing.T) {
	dir := system(t)
	in := func(argv ...string) string { t.Helper(); return run(t, machine.Chroot(t.Context(), dir, argv...)) }
	want := in("coloctl", "version")
	if got := in("colod", "--version"); !strings.Contains(want, strings.Fields(got)[1]) || strings.Contains(got, "devel") {
		t.Errorf("colod says %q, coloctl %q", got, want)
	}
	for _, unit := range []string{"colod.service", "colod-witness.service"} {
		if said := in("systemd-analyze", "verify", "--man=no", unit); strings.Contains(said, "colo") {
			t.Errorf("%s: %s", unit, said)
		}
	}
	if group := in("getent", "group", "coloctl"); !strings.HasPrefix(group, "coloctl:") {
		t.Error(group)
	}
	if said := in("sh", "-c", "dpkg --verify coloctl && dpkg -s coloctl | grep ^Status"); !strings.Contains(said, "install ok installed") {
		t.Error(said)
	}
	in("bash", "-nc", ". /usr/share/bash-completion/completions/coloctl")
}

// TestOthersInstalled puts the other packages beside the first: systemd runs the other daemon then, and the collection lies where Ansible looks.
func TestOthersInstalled(t *testing.T) {
	dir := system(t)
	in := func(argv ...string) string { t.Helper(); return run(t, machine.Chroot(t.Context(), dir, argv...)) }
	install := []string{"dpkg", "-i"}
	for _, name := range names[1:] {
		file := "/root/" + name + ".deb"
		run(t, exec.CommandContext(t.Context(), "cp", packages(t, name, "deb"), filepath.Join(dir, file)))
		install = append(install, file)
	}
	in(install...)
	t.Cleanup(func() { // other tests boot the system
		run(t, machine.Chroot(context.Background(), dir, append([]string{"dpkg", "--purge"}, names[1:]...)...))
	})
	if said := in("systemd-analyze", "verify", "--man=no", "colod.service"); strings.Contains(said, "colo") {
		t.Error(said)
	}
	if said := in("cat", "/usr/lib/systemd/system/colod.service.d/etcd.conf"); !strings.Contains(said, "/usr/bin/colod-etcd run") {
		t.Error(said)
	}
	if got, want := in("colod-etcd", "--version"), in("coloctl", "version"); !strings.Contains(want, strings.Fields(got)[1]) {
		t.Errorf("colod-etcd says %q, coloctl %q", got, want)
	}
	if _, err := exec.LookPath("ansible-doc"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	ansible := func(command string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "sh", "-c", command)
		cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "ANSIBLE_COLLECTIONS_PATH="+filepath.Join(dir, "usr/share/ansible/collections"))
		return run(t, cmd)
	}
	if said := ansible("ansible-doc -t module coloctl.coloctl.colo_vm"); !strings.Contains(said, "switched-over") {
		t.Error(said)
	}
	if said := ansible("ansible localhost -m coloctl.coloctl.colo_vm -a 'name=web state=nonsense' 2>&1 || true"); !strings.Contains(said, "nonsense") {
		t.Errorf("the module doesn't run: %s", said)
	}
}
