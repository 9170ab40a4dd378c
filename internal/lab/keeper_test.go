package lab

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestShellArgs(t *testing.T) {
	s := LabStatus{Name: "lab", PID: 77, Nodes: []NodeStatus{{Name: "n1", Netns: "/proc/77/fd/9"}, {Name: "client", Netns: "/proc/77/fd/8"}}}
	args, err := s.ShellArgs("client", []string{"ls", "-l"})
	if err != nil || !slices.Contains(args, "--net=/proc/77/fd/8") || !slices.Contains(args, "--target=77") ||
		strings.Join(args[len(args)-3:], " ") != "-- ls -l" || slices.Contains(args, "--user") != (os.Geteuid() != 0) {
		t.Errorf("got %q, %v", args, err)
	}
	if _, err := s.ShellArgs("n9", nil); err == nil || !strings.Contains(err.Error(), "n1 client") {
		t.Errorf("got %v", err)
	}
}

func TestOpenLabRemovesWhatACrashLeft(t *testing.T) {
	state, _ := folders(t)
	if _, err := OpenLab("gone"); !errors.Is(err, ErrNoLab) {
		t.Errorf("got %v", err)
	}
	f, err := MakeFolder("gone")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Release(); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenLab("gone"); !errors.Is(err, ErrNoLab) || exists(filepath.Join(state, "coloctl", "lab", "gone")) {
		t.Errorf("got %v, the folder may be left", err)
	}
}

func TestShellEnv(t *testing.T) {
	t.Setenv("PATH", "/somewhere")
	t.Setenv("COLOCTL_CONTEXT", "a-person's")
	s := LabStatus{Nodes: []NodeStatus{{Name: "n1", Context: "n1"}, {Name: "client"}}}
	get := func(host, name string) (values []string) {
		for _, e := range s.ShellEnv(host) {
			if v, ok := strings.CutPrefix(e, name+"="); ok {
				values = append(values, v)
			}
		}
		return values
	}
	if got := get("n1", "PATH"); len(got) != 1 || !strings.HasSuffix(got[0], ":/somewhere") || strings.HasPrefix(got[0], ":") {
		t.Errorf("PATH: %q", got)
	}
	if got := get("n1", "COLOCTL_CONTEXT"); len(got) != 1 || got[0] != "n1" {
		t.Errorf("on a node: %q", got)
	}
	if got := get("n1", "COLOCTL_CONTEXTS"); len(got) != 1 || got[0] != "/run/lab/contexts.yaml" {
		t.Errorf("on a node: %q", got)
	}
	if got := get("client", "COLOCTL_CONTEXT"); len(got) != 1 || got[0] != "a-person's" {
		t.Errorf("on the client: %q", got)
	}
}
