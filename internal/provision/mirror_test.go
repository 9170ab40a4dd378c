package provision

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// mirror is a small Debian mirror with packages that look like those of QEMU
// and the kernel, signed with a key of its own, on a local HTTP server.
type mirror struct {
	root    string
	keyring string
	server  *httptest.Server

	mu     sync.Mutex
	served map[string]int // complete answers by path
	ranged map[string]int // requests for a part, by path
	// stall, if set, gets half of every package out and then waits for the
	// client to go away.
	stall   bool
	stalled chan string
}

// newMirror starts a mirror. The largest package has ballast bytes.
func newMirror(t *testing.T, ballast int) *mirror {
	t.Helper()
	for _, tool := range []string{"apt-get", "dpkg-deb", "gpg"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatal(err)
			}
			t.Skipf("needs %s", tool)
		}
	}
	m := &mirror{root: t.TempDir(), served: map[string]int{}, ranged: map[string]int{}, stalled: make(chan string, 100)}
	noise := make([]byte, ballast)
	for i, r := 0, rand.New(rand.NewPCG(1, 2)); i < len(noise); i++ {
		noise[i] = byte(r.Uint32())
	}
	backports := [][]byte{
		m.deb(t, "qemu-system-x86", "demo-libs", map[string]string{
			"usr/bin/qemu-system-x86_64": "qemu", "usr/share/qemu/noise": string(noise)}),
		m.deb(t, "qemu-utils", "demo-libs", map[string]string{"usr/bin/qemu-img": "img"}),
	}
	stable := [][]byte{
		// Stands for the loader: what the scripts start.
		m.deb(t, "demo-libs", "", map[string]string{libDir + "/ld-linux-x86-64.so.2": "#!/bin/sh\necho version 11.9.1 \"$@\"\n"}),
		m.deb(t, "initramfs-tools", "", map[string]string{"usr/bin/mkinitramfs": "not wanted"}),
		m.deb(t, "linux-image-cloud-amd64", "linux-image-9.9-cloud-amd64", nil),
		m.deb(t, "linux-image-9.9-cloud-amd64", "initramfs-tools", map[string]string{
			"boot/vmlinuz-9.9": "kernel", "usr/lib/modules/9.9/modules.builtin": ""}),
	}
	home := m.key(t)
	m.suite(t, home, "trixie", stable)
	m.suite(t, home, "trixie-backports", backports)
	m.server = httptest.NewServer(http.HandlerFunc(m.serve))
	t.Cleanup(m.server.Close)

	// An old QEMU comes first in PATH, so the machine's own plays no part; nor
	// does its proxy.
	bin := t.TempDir()
	for _, name := range []string{"qemu-system-x86_64", "qemu-img"} {
		script(t, filepath.Join(bin, name), "echo QEMU emulator version 7.2.22")
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	t.Setenv("no_proxy", "127.0.0.1")
	for _, name := range []string{MirrorVariable, QEMUVariable, QEMUImgVariable, KernelVariable, ModulesVariable} {
		t.Setenv(name, "")
	}
	t.Setenv(AccelVariable, "tcg")
	return m
}

func (m *mirror) options(t *testing.T) Options {
	return Options{CacheDir: t.TempDir(), Mirror: m.server.URL, Keyring: m.keyring}
}

func (m *mirror) serve(w http.ResponseWriter, r *http.Request) {
	path := filepath.Join(m.root, filepath.Clean(r.URL.Path))
	isDeb := filepath.Ext(path) == ".deb"
	m.mu.Lock()
	stall := m.stall && isDeb
	if isDeb && r.Header.Get("Range") != "" {
		m.ranged[r.URL.Path]++
	}
	if isDeb && !stall {
		m.served[r.URL.Path]++
	}
	m.mu.Unlock()
	if !stall {
		http.ServeFile(w, r, path)
		return
	}
	data, err := os.ReadFile(path)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	info, err := os.Stat(path)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(data)))
	// apt goes on with a partial file only if it knows its age.
	w.Header().Set("Last-Modified", info.ModTime().UTC().Format(http.TimeFormat))
	_, _ = w.Write(data[:len(data)/2])
	_ = http.NewResponseController(w).Flush()
	m.stalled <- r.URL.Path
	<-r.Context().Done()
}

// deb builds a package and returns its paragraph for the list of packages.
func (m *mirror) deb(t *testing.T, name, depends string, files map[string]string) []byte {
	t.Helper()
	dir := t.TempDir()
	control := fmt.Sprintf("Package: %s\nVersion: 1:2.0-1\nArchitecture: amd64\nMaintainer: nobody <nobody@localhost>\nDescription: test\n", name)
	if depends != "" {
		control += "Depends: " + depends + "\n"
	}
	write(t, filepath.Join(dir, "DEBIAN/control"), control)
	for path, content := range files {
		write(t, filepath.Join(dir, path), content)
		if err := os.Chmod(filepath.Join(dir, path), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join("pool", name+"_2.0-1_amd64.deb")
	write(t, filepath.Join(m.root, file), "")
	run(t, "dpkg-deb", "-Znone", "-b", dir, filepath.Join(m.root, file))
	data, err := os.ReadFile(filepath.Join(m.root, file))
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Appendf(nil, "%sFilename: %s\nSize: %d\nSHA256: %x\n", control, file, len(data), sha256.Sum256(data))
}

// key makes a signing key and its keyring.
func (m *mirror) key(t *testing.T) (home string) {
	t.Helper()
	// gpg's agent makes a socket there, whose path must be short.
	home, err := os.MkdirTemp("", "gpg")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run()
		_ = os.RemoveAll(home)
	})
	run(t, "gpg", "--homedir", home, "--batch", "--passphrase", "", "--quick-gen-key", "test", "rsa2048", "sign", "never")
	m.keyring = filepath.Join(t.TempDir(), "keyring.gpg")
	run(t, "gpg", "--homedir", home, "--batch", "--output", m.keyring, "--export")
	return home
}

func (m *mirror) suite(t *testing.T, home, name string, packages [][]byte) {
	t.Helper()
	dir := filepath.Join(m.root, "dists", name)
	list := bytes.Join(packages, []byte("\n"))
	write(t, filepath.Join(dir, "main/binary-amd64/Packages"), string(list))
	release := fmt.Sprintf("Origin: Debian\nLabel: Debian\nSuite: %s\nCodename: %s\nDate: %s\nArchitectures: amd64\nComponents: main\n"+
		"SHA256:\n %x %d main/binary-amd64/Packages\n", name, name, time.Now().UTC().Format(time.RFC1123), sha256.Sum256(list), len(list))
	write(t, filepath.Join(dir, "Release"), release)
	run(t, "gpg", "--homedir", home, "--batch", "--yes", "--output", filepath.Join(dir, "InRelease"), "--clearsign", filepath.Join(dir, "Release"))
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func script(t *testing.T, path, body string) {
	t.Helper()
	write(t, path, "#!/bin/sh\n"+body+"\n")
	if err := os.Chmod(path, 0o755); err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if output, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, output)
	}
}
