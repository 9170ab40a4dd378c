package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// NodeStatus is one host of a lab that is up.
type NodeStatus struct {
	Name  string `json:"name"`
	Netns string `json:"netns"` // a path for nsenter(1), on the outside
	State string `json:"state"` // of the VM; empty for the client
	Why   string `json:"why,omitempty"`
	QEMU  int    `json:"qemu,omitempty"` // process id inside the lab
	// Protected is the node's verdict, Reason why it is not.
	Protected bool   `json:"protected"`
	Reason    string `json:"reason,omitempty"`

	// Context is coloctl's on this host; empty where there is none.
	Context string `json:"context,omitempty"`

	fd int // of the network namespace, in the worker
}

// LabStatus is a lab that is up.
type LabStatus struct {
	Name   string       `json:"name"`
	PID    int          `json:"pid"` // of the worker
	Folder string       `json:"folder"`
	Guest  string       `json:"guest"` // its address, in the client's network
	Nodes  []NodeStatus `json:"nodes"`
	// Starting is what a lab that isn't up yet does; see [ErrStarting].
	Starting string `json:"starting,omitempty"`
}

// status asks the nodes.
func (l *Lab) status(ctx context.Context) LabStatus {
	s := LabStatus{Folder: FolderOutside(), Guest: GuestAddr.String()}
	for _, name := range NodeNames {
		n := NodeStatus{Name: name, Netns: l.Topology.Nodes[name].Netns(), Context: name}
		v, err := l.nodes[name].Status(ctx)
		if err != nil {
			n.Reason = err.Error()
		} else {
			n.State, n.Why, n.QEMU, n.Protected, n.Reason = string(v.State), v.Why, v.PID, v.Verdict.Protected, v.Verdict.Reason
		}
		s.Nodes = append(s.Nodes, n)
	}
	s.Nodes = append(s.Nodes, NodeStatus{Name: clientName, Netns: l.Topology.Client.Netns()},
		NodeStatus{Name: witnessName, Netns: l.Topology.Witness.Netns(), Context: SiteContext})
	return s
}

// A Handle is a named lab as seen from outside.
type Handle struct {
	Name   string
	Folder string
}

// OpenLab finds a lab by its name. It fails with [ErrNoLab] if it isn't up, after it has removed what a crash may have left of it.
func OpenLab(name string) (*Handle, error) {
	path, err := NamedFolder(name)
	if err != nil {
		return nil, err
	}
	if used, _ := inUse(path); !used {
		removed := removeStale(path, unlockedAge)
		if removed {
			return nil, fmt.Errorf("%s: %w; what a crash had left of it is removed", name, ErrNoLab)
		}
		return nil, fmt.Errorf("%s: %w", name, ErrNoLab)
	}
	return &Handle{Name: name, Folder: path}, nil
}

// UpLabs returns the names of the labs that are up.
func UpLabs() []string {
	root, err := StateRoot()
	if err != nil {
		return nil
	}
	entries, _ := os.ReadDir(root) // an unreadable folder holds none of ours
	var names []string
	for _, e := range entries {
		if used, _ := inUse(filepath.Join(root, e.Name())); used && labName.MatchString(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names
}

// dial connects to the control socket. The path goes through a file descriptor: it may be longer than a socket's can be.
func (h *Handle) dial(ctx context.Context) (*net.UnixConn, error) {
	dir, err := os.Open(h.Folder)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	c, err := new(net.Dialer).DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), controlName))
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}

// worker returns the process that listens on the control socket, also when it is stuck.
func (h *Handle) worker(ctx context.Context) (int, error) {
	c, err := h.dial(ctx)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, credErr); err != nil {
		return 0, err
	}
	return int(cred.Pid), nil
}

func (h *Handle) request(ctx context.Context, method, path string) (*http.Response, error) {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return h.dial(ctx) },
	}}
	req, err := http.NewRequestWithContext(ctx, method, "http://lab"+path, nil)
	if err != nil {
		return nil, err
	}
	return client.Do(req)
}

// Status asks the lab. It fails with [ErrStarting] if it isn't up yet.
func (h *Handle) Status(ctx context.Context) (LabStatus, error) {
	var s LabStatus
	pid, err := h.worker(ctx)
	if notYet(err) {
		return s, fmt.Errorf("lab %s %w; its log: %s", h.Name, ErrStarting, filepath.Join(h.Folder, LogName))
	}
	if err != nil {
		return s, fmt.Errorf("lab %s: %w", h.Name, err)
	}
	resp, err := h.request(ctx, http.MethodGet, "/status")
	if err != nil {
		return s, fmt.Errorf("lab %s: %w", h.Name, err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		return s, fmt.Errorf("lab %s: %w", h.Name, err)
	}
	if s.Starting != "" {
		return s, fmt.Errorf("lab %s %w: %s; its log: %s", h.Name, ErrStarting, s.Starting, filepath.Join(h.Folder, LogName))
	}
	s.Name, s.PID = h.Name, pid
	for i := range s.Nodes {
		var inside int
		if _, err := fmt.Sscanf(s.Nodes[i].Netns, "/proc/%d/fd/%d", &inside, &s.Nodes[i].fd); err != nil {
			return s, fmt.Errorf("lab %s: network of %s: %q: %w", h.Name, s.Nodes[i].Name, s.Nodes[i].Netns, err)
		}
		s.Nodes[i].Netns = fmt.Sprintf("/proc/%d/fd/%d", pid, s.Nodes[i].fd)
	}
	return s, nil
}

// notYet tells whether an error of worker says that the lab's process hasn't come so far that it listens.
func notYet(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) }

// Down ends the lab, also one that is starting, by force if it doesn't by itself within grace, and removes its folder.
func (h *Handle) Down(ctx context.Context, grace time.Duration) error {
	pid, workerErr := h.worker(ctx)
	for end := time.Now().Add(grace); notYet(workerErr) && time.Now().Before(end) && ctx.Err() == nil; pid, workerErr = h.worker(ctx) {
		if used, _ := inUse(h.Folder); !used {
			break
		}
		time.Sleep(20 * time.Millisecond) // its process is just beginning, and tells nobody when it listens
	}
	pidfd := -1
	if workerErr == nil {
		// Taken before the lab is asked to go: its number may be another process's afterwards.
		fd, err := unix.PidfdOpen(pid, 0)
		if err == nil {
			pidfd = fd
			defer func() { _ = unix.Close(fd) }()
		}
		dctx, cancel := context.WithTimeout(ctx, time.Second)
		if resp, err := h.request(dctx, http.MethodPost, "/down"); err == nil {
			_ = resp.Body.Close() // it is empty
		}
		cancel()
	}
	gone := func(limit time.Duration) bool {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for end := time.Now().Add(limit); ; {
			if used, _ := inUse(h.Folder); !used {
				return true
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return false
			}
			if time.Now().After(end) {
				return false
			}
		}
	}
	if !gone(grace) && ctx.Err() == nil {
		if pidfd < 0 {
			return fmt.Errorf("lab %s doesn't end and its process can't be found: %w", h.Name, workerErr)
		}
		if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill lab %s: %w", h.Name, err)
		}
		if !gone(10 * time.Second) {
			return fmt.Errorf("lab %s still holds its folder after it was killed", h.Name)
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return os.RemoveAll(h.Folder)
}

// ShellArgs returns the command line that runs cmd on a host of the lab, in all its namespaces.
func (s *LabStatus) ShellArgs(host string, cmd []string) ([]string, error) {
	for _, n := range s.Nodes {
		if n.Name != host {
			continue
		}
		args := []string{"nsenter", fmt.Sprintf("--target=%d", s.PID), "--mount", "--pid", "--ipc", "--net=" + n.Netns}
		if os.Geteuid() != 0 {
			args = append(args, "--user", "--preserve-credentials")
		}
		return append(append(args, "--"), cmd...), nil
	}
	var names []string
	for _, n := range s.Nodes {
		names = append(names, n.Name)
	}
	return nil, fmt.Errorf("lab %s has no host %q: expected one of %v", s.Name, host, names)
}

// ShellEnv returns the environment for a command on a host: this program, as coloctl, is found there, and it knows the lab's daemons.
func (s *LabStatus) ShellEnv(host string) []string {
	set := map[string]string{"COLOCTL_NODE": host}
	if self, err := os.Executable(); err == nil {
		set["PATH"] = filepath.Dir(self) + string(os.PathListSeparator) + os.Getenv("PATH")
	}
	for _, n := range s.Nodes {
		if n.Name == host && n.Context != "" {
			set["COLOCTL_CONTEXTS"], set["COLOCTL_CONTEXT"] = Path(ContextsName), n.Context
		}
	}
	// Of two with one name a program would take the first.
	env := slices.DeleteFunc(os.Environ(), func(e string) bool {
		name, _, _ := strings.Cut(e, "=")
		_, ours := set[name]
		return ours
	})
	for _, name := range slices.Sorted(maps.Keys(set)) {
		env = append(env, name+"="+set[name])
	}
	return env
}
