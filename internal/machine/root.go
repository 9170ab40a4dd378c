package machine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/coloctl/coloctl/internal/provision"
)

// Errors about what this machine lacks.
var (
	// ErrNotRoot is returned to any other user.
	ErrNotRoot = errors.New("machines need root")
	// ErrMissing is returned when a program is not installed.
	ErrMissing = errors.New("not installed here")
)

// Options of Make.
type Options struct {
	Release  string   // "trixie"
	Packages []string // besides the essential ones and systemd
	Mirror   string   // default: that of this machine's apt
	Out      io.Writer
}

// Make makes the files of a system in dir, which must not exist. Its apt knows the release and its backports.
func Make(ctx context.Context, dir string, o Options) error {
	if os.Geteuid() != 0 {
		return ErrNotRoot
	}
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		return fmt.Errorf("mmdebstrap: %w", ErrMissing)
	}
	if o.Mirror == "" {
		var err error
		if o.Mirror, err = provision.MachineMirror(ctx); err != nil {
			return err
		}
	}
	args := []string{"--quiet", "--variant=minbase", "--format=directory", "--aptopt=APT::Install-Recommends \"false\"",
		"--include=" + strings.Join(append([]string{"systemd", "systemd-sysv"}, o.Packages...), ","), o.Release, dir}
	for _, suite := range []string{o.Release, o.Release + "-backports"} {
		args = append(args, fmt.Sprintf("deb %s %s main", o.Mirror, suite))
	}
	cmd := exec.CommandContext(ctx, "mmdebstrap", args...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if o.Out != nil {
		cmd.Stdout, cmd.Stderr = o.Out, o.Out
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("mmdebstrap %s: %w\n%s", o.Release, err, lastLines(said.String(), 20))
	}
	// mmdebstrap leaves its options, and the name of the machine that it ran on.
	if err := os.Remove(filepath.Join(dir, "etc/apt/apt.conf.d/99mmdebstrap")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "etc/hostname"), []byte("debian\n"), 0o644)
}

// Chroot is a command in a system that isn't booted, with this machine's network.
func Chroot(ctx context.Context, dir string, argv ...string) *exec.Cmd {
	// A mount namespace, so that /proc is gone with the command.
	script := `mount --make-rprivate / && mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot "$0" "$@"`
	cmd := exec.CommandContext(ctx, "unshare", append([]string{"--mount", "--", "sh", "-c", script, dir}, argv...)...)
	cmd.Env = environment
	return cmd
}

// environment is what a root shell of a fresh system has.
var environment = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
