package setup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coloctl/coloctl/colo/config"
)

// Errors of a host that takes over a bundle.
var (
	// ErrOther is returned on a host that is another machine of a site already.
	ErrOther = errors.New("this host is another machine already")
	// ErrUnfit is returned when the host lacks something that the bundle's machine needs.
	ErrUnfit = errors.New("this host is not fit")
)

// Host is this host.
type Host struct {
	Etc string // folder of the configuration; /etc/coloctl
	// Examine looks at this host as the node or witness that a configuration describes; one of the two is nil. Nothing is changed.
	Examine func(ctx context.Context, node *config.Config, w *config.WitnessConfig) []config.Finding
	// Systemd says that there are units to be started.
	Systemd bool
}

// Examined are the findings about this host as the bundle's machine. The files of the bundle are looked at in a folder that is gone afterwards.
func (h Host) Examined(ctx context.Context, b *Bundle) ([]config.Finding, error) {
	dir, err := os.MkdirTemp("", "coloctl-setup-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	for n, data := range b.Files {
		if err := os.WriteFile(filepath.Join(dir, n), data, 0o600); err != nil {
			return nil, err
		}
	}
	file := filepath.Join(dir, b.config())
	var found []config.Finding
	if b.Witness {
		c, err := config.LoadWitness(file)
		if err != nil {
			return nil, err
		}
		found = h.Examine(ctx, nil, c)
	} else {
		c, err := config.Load(file)
		if err != nil {
			return nil, err
		}
		found = h.Examine(ctx, c, nil)
	}
	var out []config.Finding
	for _, f := range found {
		if f.Rule != "state folder" && f.Rule != "storage folder" { // they are made
			f.Text = strings.ReplaceAll(f.Text, dir, h.Etc)
			out = append(out, f)
		}
	}
	return out, nil
}

// Refuse returns ErrOther if this host is another machine.
func (h Host) Refuse(b *Bundle) error {
	path := filepath.Join(h.Etc, b.config())
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	is := ""
	if b.Witness {
		c, err := config.LoadWitness(path)
		if err != nil {
			return err
		}
		is = c.Name
	} else {
		c, err := config.Load(path)
		if err != nil {
			return err
		}
		is = c.Node
	}
	if is != b.Machine {
		return fmt.Errorf("%w: %s is the configuration of %s, the bundle is for %s", ErrOther, path, is, b.Machine)
	}
	return nil
}

// Join makes this host the bundle's machine.
func (h Host) Join(b *Bundle) Plan {
	var p Plan
	changed := false
	write := func(n string) {
		path, mode := filepath.Join(h.Etc, n), os.FileMode(0o644)
		if secret(n) {
			mode = 0o600
		}
		same := func() bool {
			have, err := os.ReadFile(path)
			return err == nil && bytes.Equal(have, b.Files[n])
		}
		what := "write " + path
		if exists(path) {
			what = "replace " + path + ", keeping the old one as " + n + ".old"
		}
		p = append(p, Step{what, same, func(context.Context) error {
			changed = true
			if err := os.MkdirAll(h.Etc, 0o755); err != nil {
				return err
			}
			if old, err := os.ReadFile(path); err == nil {
				if err := writeFile(path+".old", old, 0o600); err != nil {
					return err
				}
			}
			return writeFile(path, b.Files[n], mode)
		}})
	}
	// The configuration last: with it the host is that machine.
	for _, n := range slices.Sorted(maps.Keys(b.Files)) {
		if n != b.config() {
			write(n)
		}
	}
	write(b.config())
	for _, dir := range b.folders() {
		p = append(p, Step{"make " + dir, func() bool { return exists(dir) }, func(context.Context) error { return os.MkdirAll(dir, 0o700) }})
	}
	if h.Systemd {
		unit := b.service()
		p = append(p, Step{"start " + unit + ", now and at each boot", func() bool {
			return !changed && quiet("is-active", unit) && quiet("is-enabled", unit)
		}, func(ctx context.Context) error {
			if err := systemctl(ctx, "enable", unit); err != nil {
				return err
			}
			return systemctl(ctx, "restart", unit) // QEMUs run on
		}})
	}
	return p
}

// folders must be there before the daemon starts.
func (b *Bundle) folders() []string {
	if b.Witness {
		if c, err := config.ParseWitness(b.Files[WitnessFile], WitnessFile); err == nil {
			return []string{filepath.Dir(c.State)}
		}
		return nil
	}
	if c, err := config.Parse(b.Files[NodeFile], NodeFile); err == nil {
		return []string{c.StateDir, c.StorageDir}
	}
	return nil
}

func quiet(verb, unit string) bool {
	return exec.CommandContext(context.Background(), "systemctl", "--quiet", verb, unit).Run() == nil
}

func systemctl(ctx context.Context, verb, unit string) error {
	out, err := exec.CommandContext(ctx, "systemctl", verb, unit).CombinedOutput()
	if err != nil {
		return fmt.Errorf("systemctl %s %s: %w: %s; see: journalctl -u %s", verb, unit, err, bytes.TrimSpace(out), unit)
	}
	return nil
}
