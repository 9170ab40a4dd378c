package provision

import (
	"bytes"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPickMirror(t *testing.T) {
	for _, c := range []struct{ name, targets, want string }{
		{"with lists", "http://d.example/debian-security/|Debian|Debian-Security|bookworm-security|main\n" +
			"http://d.example/debian/|Debian|Debian|bookworm|main\n", "http://d.example/debian"},
		{"odd path", "https://m.example/pub/deb/|Debian|Debian|trixie|main\n", "https://m.example/pub/deb"},
		{"no lists", "http://v.example/debian/12/prod/|$(ORIGIN)|$(LABEL)|bookworm|main\n" +
			"http://d.example/debian/|$(ORIGIN)|$(LABEL)|bookworm|main\n", "http://d.example/debian"},
		{"only a vendor", "http://v.example/debian/|Vendor|Vendor|bookworm|main\n", ""},
		{"vendor's component", "http://v.example/linux/debian/|$(ORIGIN)|$(LABEL)|bookworm|stable\n", ""},
		{"other distribution", "http://u.example/ubuntu/|Ubuntu|Ubuntu|noble|main\n", ""},
		{"backports alone", "http://d.example/debian/|Debian Backports|Debian Backports|bookworm-backports|main\n", ""},
		{"empty", "", ""},
	} {
		if got := pickMirror(c.targets); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestParseURIs(t *testing.T) {
	sum := strings.Repeat("0a", 32)
	files, err := parseURIs("Reading package lists...\n'http://d.example/q_1%3a2_amd64.deb' q-u_1%3a2+b~1_amd64.deb 12 SHA256:" + sum + "\n")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]debFile{{"q-u_1%3a2+b~1_amd64.deb", 12, sum}}, files); diff != "" {
		t.Error(diff)
	}
	if name, version, arch := files[0].fields(); name != "q-u" || version != "1:2+b~1" || arch != "amd64" {
		t.Errorf("fields %q %q %q", name, version, arch)
	}
	for _, bad := range []string{
		"",
		"'u' q_1_amd64.deb 12 MD5Sum:00\n",
		"'u' q_1_amd64.deb 12 \n",
		"'u' ../q_1_amd64.deb 12 SHA256:" + sum + "\n",
		"'u' q_amd64.deb 12 SHA256:" + sum + "\n",
		"'u' q_1_amd64.deb 99999999999999999999 SHA256:" + sum + "\n",
	} {
		if files, err := parseURIs(bad); err == nil {
			t.Errorf("%q gave %v", bad, files)
		}
	}
}

func TestAptErrorKeepsReasonAndMessages(t *testing.T) {
	failed := errors.New("exit status 100")
	err := newAptError("update", "Err:1 x\nE: Failed to fetch http://d.example  Could not resolve 'd.example'\n", failed)
	if !errors.Is(err, ErrNetwork) || !errors.Is(err, failed) {
		t.Errorf("%v", err)
	}
	if err.Output != "E: Failed to fetch http://d.example  Could not resolve 'd.example'" {
		t.Errorf("output %q", err.Output)
	}
	if err := newAptError("update", "E: something new\n", failed); errors.Is(err, ErrNetwork) || !errors.Is(err, failed) {
		t.Errorf("unknown reason: %v", err)
	}
}

func TestFit(t *testing.T) {
	qemu := filepath.Join(t.TempDir(), "q")
	script(t, qemu, "printf 'colo-compare\\nfilter-mirror\\nfilter-redirector\\nfilter-rewriter\\n'")
	if err := fit(t.Context(), qemu, "11.0.0"); err != nil {
		t.Error(err)
	}
	if err := fit(t.Context(), qemu, "10.2.9"); err == nil {
		t.Error("version 10 is fit")
	}
	script(t, qemu, "echo secret")
	if err := fit(t.Context(), qemu, "11.0.0"); err == nil || !strings.Contains(err.Error(), "without COLO") {
		t.Errorf("without COLO: %v", err)
	}
	if _, err := qemuVersion(t.Context(), qemu); err == nil {
		t.Error("a program without a version is QEMU")
	}
	if _, err := qemuVersion(t.Context(), qemu+"x"); !errors.Is(err, exec.ErrNotFound) && err == nil {
		t.Error("no program is QEMU")
	}
}

func TestProgress(t *testing.T) {
	var out bytes.Buffer
	p := newProgress(&out)
	p.step("one")
	for _, percent := range []int{0, 5, 9, 10, 19, 55, 100} {
		p.at("two", percent)
	}
	p.finish()
	if want := "one\ntwo 10 %\ntwo 55 %\ntwo 100 %\n"; out.String() != want {
		t.Errorf("plain: %q", out.String())
	}
	out.Reset()
	p.terminal = true
	p.at("two", 1)
	p.at("two", 2)
	p.step("three")
	if want := "\r\x1b[Ktwo 1 %\r\x1b[Ktwo 2 %\nthree\n"; out.String() != want {
		t.Errorf("terminal: %q", out.String())
	}
}
