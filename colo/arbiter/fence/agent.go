package fence

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"syscall"
	"time"
)

// Errors of an agent.
var (
	// ErrAgent is returned, in an [*AgentError], when an agent didn't do what it was asked for. The peer may be on or off.
	ErrAgent = errors.New("fence agent failed")

	// ErrUnfit is returned for an agent or options that can't work: no such executable, one that others may change, an unknown option.
	ErrUnfit = errors.New("unusable fence agent")
)

// Action of an agent.
type Action string

// Actions. Monitor asks the device whether it answers.
const (
	Off     Action = "off"
	Reboot  Action = "reboot"
	Monitor Action = "monitor"
)

// Power is what an agent's status says.
type Power int

// Powers.
const (
	Unknown Power = iota
	PoweredOn
	PoweredOff
)

func (p Power) String() string { return [...]string{"unknown", "on", "off"}[p] }

// Agent runs one agent's executable against one target.
type Agent struct {
	// Path of the executable, absolute, or a name to be found in Debian's and Red Hat's folders: fence_ipmilan.
	Path string
	// Options as in the agent's metadata: ip, username, password, plug and so on. They reach it on standard input only, where no other
	// user sees them.
	Options map[string]string
	// Timeout of one run. Default: 60 s, as Pacemaker's.
	Timeout time.Duration
	// Action that proves the copy's end. Default: Off. Reboot is proof, too, as the copy is dead either way, and brings the host back.
	Action Action
	// NoVerify leaves out the question for the status after Off. For devices that can't answer it.
	NoVerify bool
}

// AgentError says how a run ended. It is an [ErrAgent].
type AgentError struct {
	Agent  string
	Action string
	Status int    // exit status, -1 if it was killed or didn't start
	Output string // the end of what it wrote to standard error, without the options' values
	Err    error
}

func (e *AgentError) Error() string {
	s := fmt.Sprintf("%s %s", e.Agent, e.Action)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	} else {
		s += fmt.Sprintf(": exit status %d", e.Status)
	}
	if e.Output != "" {
		s += ": " + e.Output
	}
	return s
}

// Is makes errors.Is(e, ErrAgent) true.
func (e *AgentError) Is(target error) bool { return target == ErrAgent }

// Unwrap returns what ended the run, if it wasn't the agent itself.
func (e *AgentError) Unwrap() error { return e.Err }

var folders = []string{"/usr/sbin", "/usr/bin", "/sbin", "/usr/local/sbin"}

// find returns the path of the executable, if it may be run: what others can write to must not decide over a host's power.
func (a Agent) find() (string, error) {
	candidates := []string{a.Path}
	if !strings.Contains(a.Path, "/") {
		candidates = nil
		for _, d := range folders {
			candidates = append(candidates, filepath.Join(d, a.Path))
		}
	} else if !filepath.IsAbs(a.Path) {
		return "", fmt.Errorf("%w: %s is a relative path", ErrUnfit, a.Path)
	}
	for _, c := range candidates {
		fi, err := os.Stat(c)
		switch {
		case err != nil:
			continue
		case !fi.Mode().IsRegular() || fi.Mode()&0o111 == 0:
			return "", fmt.Errorf("%w: %s isn't executable", ErrUnfit, c)
		case fi.Mode()&0o022 != 0:
			return "", fmt.Errorf("%w: %s can be changed by others (mode %04o)", ErrUnfit, c, fi.Mode().Perm())
		}
		return c, nil
	}
	return "", fmt.Errorf("%w: no %s in %s", ErrUnfit, a.Path, strings.Join(candidates, ", "))
}

// Metadata is what an agent tells of itself.
type Metadata struct {
	Name       string       `xml:"name,attr"`
	Short      string       `xml:"shortdesc,attr"`
	Parameters []Parameter  `xml:"parameters>parameter"`
	Actions    []ActionInfo `xml:"actions>action"`
}

// ActionInfo names one of an agent's actions.
type ActionInfo struct {
	Name string `xml:"name,attr"`
}

// Parameter is one of an agent's options.
type Parameter struct {
	Name     string `xml:"name,attr"`
	Required string `xml:"required,attr"`
	Short    string `xml:"shortdesc"`
}

// Metadata asks the agent for its description. The device isn't touched.
func (a Agent) Metadata(ctx context.Context) (Metadata, error) {
	out, _, err := a.run(ctx, "metadata", nil)
	if err != nil {
		return Metadata{}, err
	}
	var m Metadata
	if err := xml.Unmarshal(out, &m); err != nil {
		return Metadata{}, fmt.Errorf("%w: %s describes itself in a way that can't be read: %w", ErrUnfit, a.Path, err)
	}
	return m, nil
}

// Check finds out, without touching the device, whether the agent is there and knows the action and all options. For configuration and doctor.
func (a Agent) Check(ctx context.Context) error {
	m, err := a.Metadata(ctx)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, p := range m.Parameters {
		known[p.Name] = true
	}
	for name, value := range a.Options {
		switch {
		case name == "action" || name == "option":
			return fmt.Errorf("%w: %s: the option %s isn't for the configuration", ErrUnfit, a.Path, name)
		case strings.ContainsAny(name, "=\n\r") || strings.ContainsAny(value, "\n\r"):
			return fmt.Errorf("%w: %s: option %q can't be written as a line", ErrUnfit, a.Path, name)
		case !known[name]:
			return fmt.Errorf("%w: %s has no option %s", ErrUnfit, a.Path, name)
		}
	}
	if want := a.action(); !slices.Contains(m.Actions, ActionInfo{Name: string(want)}) {
		return fmt.Errorf("%w: %s can't do %s", ErrUnfit, a.Path, want)
	}
	return nil
}

func (a Agent) action() Action {
	if a.Action == "" {
		return Off
	}
	return a.Action
}

// Status asks the device whether the target is on. Exit status 0 means on, 2 off.
func (a Agent) Status(ctx context.Context) (Power, error) {
	_, status, err := a.run(ctx, "status", a.Options)
	switch {
	case err != nil:
		return Unknown, err
	case status == 2:
		return PoweredOff, nil
	}
	return PoweredOn, nil
}

// Ready asks the device whether it answers, with the action monitor. To be called now and then, so that a broken one is noticed before it is needed.
func (a Agent) Ready(ctx context.Context) error {
	_, _, err := a.run(ctx, string(Monitor), a.Options)
	return err
}

// Fence cuts the target off. Nil is proof that whatever ran on it has ended.
func (a Agent) Fence(ctx context.Context) error {
	act := a.action()
	if act != Off && act != Reboot {
		return fmt.Errorf("%w: action %s proves nothing", ErrUnfit, act)
	}
	if _, _, err := a.run(ctx, string(act), a.Options); err != nil {
		return err
	}
	if act == Reboot || a.NoVerify {
		return nil
	}
	power, err := a.Status(ctx)
	if err != nil {
		return err
	}
	if power != PoweredOff {
		return a.failed(string(act), 0, "", fmt.Errorf("it says it succeeded, and the target is still %s", power))
	}
	return nil
}

func (a Agent) failed(action string, status int, output string, err error) error {
	return &AgentError{Agent: filepath.Base(a.Path), Action: action, Status: status, Output: output, Err: err}
}

// run runs the executable once. The only exit statuses that are no error are 0, and 2 of status.
func (a Agent) run(ctx context.Context, action string, options map[string]string) (stdout []byte, status int, err error) {
	path, err := a.find()
	if err != nil {
		return nil, -1, err
	}
	timeout := a.Timeout
	if timeout <= 0 {
		timeout = 60 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path)
	cmd.Stdin = strings.NewReader(input(action, options))
	out, errs := &tail{max: 1 << 20}, &tail{max: 2 << 10}
	cmd.Stdout, cmd.Stderr = out, errs
	// Agents start other programs, and all of them have to end in time.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second // for one that has left its group and holds the pipes
	err = cmd.Run()
	if ctx.Err() != nil && err != nil {
		return nil, -1, a.failed(action, -1, a.redact(errs.String()), fmt.Errorf("after %w", context.Cause(ctx)))
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if !exit.Exited() {
			return nil, -1, a.failed(action, -1, a.redact(errs.String()), err)
		}
		if exit.ExitCode() == 2 && action == "status" {
			return out.b, 2, nil
		}
		return nil, exit.ExitCode(), a.failed(action, exit.ExitCode(), a.redact(errs.String()), nil)
	}
	if err != nil {
		return nil, -1, a.failed(action, -1, a.redact(errs.String()), err)
	}
	return out.b, 0, nil
}

func input(action string, options map[string]string) string {
	names := make([]string, 0, len(options))
	for n := range options {
		names = append(names, n)
	}
	sort.Strings(names)
	var b strings.Builder
	for _, n := range names {
		fmt.Fprintf(&b, "%s=%s\n", n, options[n])
	}
	fmt.Fprintf(&b, "action=%s\n", action)
	return b.String()
}

// redact removes secrets from what goes to logs. Short values would garble the text, and are no secrets.
func (a Agent) redact(s string) string {
	for n, v := range a.Options {
		if secret := strings.Contains(n, "pass") || strings.Contains(n, "secret") || strings.Contains(n, "token") || strings.Contains(n, "key"); secret && len(v) > 2 {
			s = strings.ReplaceAll(s, v, "…")
		}
	}
	return strings.TrimSpace(s)
}

// tail keeps the end of what is written to it.
type tail struct {
	b   []byte
	max int
}

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if over := len(t.b) - t.max; over > 0 {
		t.b = append([]byte(nil), t.b[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string { return string(bytes.ToValidUTF8(t.b, []byte("?"))) }
