package guest

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
)

// InitVariable names the environment variable with the path of the guest's
// program. It goes before every other place.
const InitVariable = "COLOCTL_GUEST_INIT"

// ErrNoInit is returned when the guest's program is nowhere and can't be built.
var ErrNoInit = errors.New("the guest's program was not found")

// Init returns the path of the guest's program, which Image takes as
// InitBinary. It looks at $COLOCTL_GUEST_INIT; beside the running executable
// (guest-init, as make puts it into bin/); in ../libexec/coloctl, seen from
// there; and at last, where the source that this program was built from is at
// hand, builds it into cacheDir with the go command.
//
// The program is not embedded into coloctl: go:embed wants a file that only an
// earlier build step makes, so go build and go vet would fail in a fresh clone.
// Nor is coloctl itself used as /init: it is larger by far, and every page of it
// lies in the guest's memory, which COLO copies. Building on demand serves
// "go run" and "go test", where the go command and the source are there by
// nature; an installed binary has its guest-init beside it or in libexec.
func Init(ctx context.Context, cacheDir string) (string, error) {
	if path := os.Getenv(InitVariable); path != "" {
		if _, err := os.Stat(path); err != nil {
			return "", fmt.Errorf("%s: %w", InitVariable, err)
		}
		return path, nil
	}
	if self, err := os.Executable(); err == nil {
		dir := filepath.Dir(self)
		for _, path := range []string{
			filepath.Join(dir, "guest-init"),
			filepath.Join(dir, "..", "libexec", "coloctl", "guest-init"),
		} {
			switch _, err := os.Stat(path); {
			case err == nil:
				return path, nil
			case !errors.Is(err, fs.ErrNotExist):
				return "", err
			}
		}
	}
	return buildInit(ctx, cacheDir)
}

// buildInit builds the program from the folder this file was compiled in.
func buildInit(ctx context.Context, cacheDir string) (string, error) {
	_, here, _, _ := runtime.Caller(0)
	source := filepath.Join(filepath.Dir(here), "init")
	if _, err := os.Stat(filepath.Join(source, "main.go")); err != nil {
		return "", fmt.Errorf("%w: put guest-init beside this program or set %s", ErrNoInit, InitVariable)
	}
	if err := os.MkdirAll(cacheDir, 0o755); err != nil {
		return "", err
	}
	// go build writes in place: two at once must not see half a file.
	temp, err := os.MkdirTemp(cacheDir, ".init-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(temp)
	built := filepath.Join(temp, "guest-init")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", built, ".")
	build.Dir = source
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOFLAGS=")
	var report bytes.Buffer
	build.Stdout, build.Stderr = &report, &report
	if err := build.Run(); err != nil {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		return "", fmt.Errorf("%w: building it: %w\n%s", ErrNoInit, err, bytes.TrimSpace(report.Bytes()))
	}
	path := filepath.Join(cacheDir, "guest-init")
	return path, os.Rename(built, path)
}
