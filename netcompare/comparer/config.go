package comparer

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/coloctl/coloctl/netcompare/compare"
)

// Files in the folder of a comparer.
const (
	configFile  = "compare.json"
	lockFile    = "compare.lock"
	socketFile  = "compare.sock"
	logFile     = "compare.log"
	unixPathMax = 107 // sun_path is 108 bytes, the last of them 0
)

// Config is what a comparer is told at its start.
type Config struct {
	VM       string   `json:"vm"`
	QMP      string   `json:"qmp"` // socket that is the comparer's alone
	NICs     []NIC    `json:"nics"`
	Settings Settings `json:"settings"`
	// Term is how long after the beginning of a checkpoint packets may leave when nobody prolongs it, see [Lease]. 0: for ever.
	Term time.Duration `json:"term"`
}

// NIC is where one NIC's packets come from and go to.
type NIC struct {
	Name string `json:"name"`
	// VNetHdr says that packets have a virtio-net header, and its length before them.
	VNetHdr   bool   `json:"vnet_hdr"`
	Primary   string `json:"primary"`   // socket that QEMU writes the primary's packets to
	Secondary string `json:"secondary"` // socket that QEMU writes the secondary's packets to
	Out       string `json:"out"`       // socket that QEMU reads released packets from
	// Reader is the object that reads Out. A process that ends in the middle of a packet leaves the object waiting for the
	// rest, so each process makes it anew.
	Reader Object `json:"reader"`
}

// Object is an object of QEMU's.
type Object struct {
	ID    string         `json:"id"`
	Type  string         `json:"type"`
	Props map[string]any `json:"props"`
}

// Settings can be changed while the process runs.
type Settings struct {
	Delay      time.Duration  `json:"delay"`   // x-checkpoint-delay: setting it is what makes QEMU begin a checkpoint
	Timeout    time.Duration  `json:"timeout"` // see compare.Config
	AckTimeout time.Duration  `json:"ack_timeout"`
	Rest       float64        `json:"rest"`
	Rules      []compare.Rule `json:"rules,omitempty"`
}

func (s Settings) engine() compare.Config {
	return compare.Config{Timeout: s.Timeout, AckTimeout: s.AckTimeout, Rest: s.Rest, Rules: s.Rules}
}

func (s Settings) check() error {
	var errs []error
	if s.Delay < time.Millisecond {
		errs = append(errs, fmt.Errorf("checkpoint delay %v: less than a millisecond", s.Delay))
	}
	if s.Timeout < 0 || s.AckTimeout < 0 {
		errs = append(errs, errors.New("a timeout is negative"))
	}
	for i, r := range s.Rules {
		if err := r.Check(); err != nil {
			errs = append(errs, fmt.Errorf("rule %d: %w", i+1, err))
		}
	}
	return errors.Join(errs...)
}

func (c Config) check() error {
	errs := []error{c.Settings.check()}
	paths := []string{c.QMP}
	for _, n := range c.NICs {
		paths = append(paths, n.Primary, n.Secondary, n.Out)
		if n.Reader.ID == "" || n.Reader.Type == "" {
			errs = append(errs, fmt.Errorf("NIC %s: no reader", n.Name))
		}
	}
	for _, p := range paths {
		if !filepath.IsAbs(p) || len(p) > unixPathMax {
			errs = append(errs, fmt.Errorf("socket path %q is not absolute, or too long", p))
		}
	}
	if len(c.NICs) == 0 || len(c.NICs) > 255 {
		errs = append(errs, fmt.Errorf("%d NICs", len(c.NICs)))
	}
	return errors.Join(errs...)
}

func readConfig(dir string) (Config, error) {
	var c Config
	text, err := os.ReadFile(filepath.Join(dir, configFile))
	if err == nil {
		err = json.Unmarshal(text, &c)
	}
	if err != nil {
		return c, fmt.Errorf("configuration: %w", err)
	}
	return c, c.check()
}

func writeConfig(dir string, c Config) error {
	text, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, configFile+".new")
	if err := os.WriteFile(tmp, text, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, configFile))
}
