package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"github.com/coloctl/coloctl/colo/config"
)

// DaemonVariable names the colod, or colod-etcd, that a lab runs.
const DaemonVariable = "COLOCTL_COLOD"

// FindDaemon completes the assets with the node daemon and what the kind of arbiter needs. The daemon is what [DaemonVariable] names, or the
// one beside this program or, when this program was built in its source tree, one that is built there now. For a scenario that sets clocks
// one with a clock of its own is built in any case.
func (a *Assets) FindDaemon(ctx context.Context, o Options, s *Scenario) (err error) {
	name := "colod"
	switch kind := o.Arbiter; kind {
	case config.ArbiterWitness:
	case config.ArbiterEtcd:
		name = "colod-etcd"
		if a.Etcd, err = findEtcd(); err != nil {
			return err
		}
	default:
		return fmt.Errorf("%w: %q: expected %s or %s", ErrArbiter, kind, config.ArbiterWitness, config.ArbiterEtcd)
	}
	if err := checkLauncher(o.Launcher, s); err != nil {
		return err
	}
	if a.Clock = s != nil && s.Clock; a.Clock {
		a.Daemon, err = buildDaemon(ctx, name, true)
		return err
	}
	a.Daemon, err = findDaemon(ctx, name)
	return err
}

func findDaemon(ctx context.Context, name string) (string, error) {
	if path := os.Getenv(DaemonVariable); path != "" && name == "colod" {
		if _, err := os.Stat(path); err != nil {
			return "", &PreconditionError{Op: DaemonVariable, Err: err, Remedy: "Name a colod that is there, or none."}
		}
		return filepath.Abs(path)
	}
	if self, err := os.Executable(); err == nil {
		path := filepath.Join(filepath.Dir(self), name)
		switch _, err := os.Stat(path); {
		case err == nil:
			return path, nil
		case !errors.Is(err, fs.ErrNotExist):
			return "", err
		}
	}
	return buildDaemon(ctx, name, false)
}

// sourceTree returns the folder of this module's source: the one that this file was compiled in, which a program built with -trimpath doesn't
// know, the one above this program's folder, or the working folder.
func sourceTree() (string, error) {
	_, here, _, _ := runtime.Caller(0)
	roots := []string{filepath.Join(filepath.Dir(here), "..", "..")}
	if self, err := os.Executable(); err == nil {
		roots = append(roots, filepath.Join(filepath.Dir(self), ".."))
	}
	if wd, err := os.Getwd(); err == nil {
		roots = append(roots, wd)
	}
	for _, root := range roots {
		text, err := os.ReadFile(filepath.Join(root, "go.mod"))
		if err == nil && filepath.IsAbs(root) && bytes.HasPrefix(text, []byte("module github.com/coloctl/coloctl\n")) {
			return root, nil
		}
	}
	return "", fmt.Errorf("the source tree of coloctl: %w", fs.ErrNotExist)
}

// buildDaemon builds it from the source tree.
func buildDaemon(ctx context.Context, name string, clock bool) (string, error) {
	missing := func(err error) error {
		remedy := fmt.Sprintf("Put %s beside this program (make build makes both) or set %s.", name, DaemonVariable)
		if clock {
			remedy = "This scenario builds a colod of its own: run it in the source tree, with Go."
		}
		return &PreconditionError{Op: "build " + name, Err: err, Remedy: remedy}
	}
	root, err := sourceTree()
	if err != nil {
		return "", missing(err)
	}
	source := filepath.Join(root, "cmd", name)
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", missing(err)
	}
	dir := filepath.Join(cache, "coloctl", "bin")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	// go build writes in place: two at once must not see half a file.
	temp, err := os.MkdirTemp(dir, ".build-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(temp)
	built := filepath.Join(temp, name)
	args := []string{"build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", built}
	path := filepath.Join(dir, name)
	if clock {
		file, err := overlay(ctx, temp)
		if err != nil {
			return "", missing(fmt.Errorf("a clock of its own for it: %w", err))
		}
		args, path = append(args, "-overlay="+file), path+"-clock"
	}
	build := exec.CommandContext(ctx, "go", append(args, ".")...)
	build.Dir = source
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=mod")
	if out, err := build.CombinedOutput(); err != nil {
		return "", missing(fmt.Errorf("building it: %w\n%s", err, bytes.TrimSpace(out)))
	}
	return path, os.Rename(built, path)
}
