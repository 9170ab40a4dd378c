package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
	"github.com/coloctl/coloctl/colo/api/pki"
	"github.com/coloctl/coloctl/colo/arbiter/witness"
	"github.com/coloctl/coloctl/colo/config"
	"github.com/coloctl/coloctl/internal/netns"
	"github.com/coloctl/coloctl/qmp"
)

const (
	doctorTimeout = 10 * time.Second // for one question
	leastSpace    = 1 << 30          // bytes, for the state and the overlays of secondaries
)

// examineHost compares a node's configuration with its host and with those it speaks to.
func (f *findings) examineHost(ctx context.Context, c *config.Config) {
	f.examineAlone(ctx, c)
	creds, err := c.Credentials()
	if err != nil {
		return // Inspect has said it
	}
	f.certificate("certificate's end", creds, nil, c.TLS.Identity, "issue a new one: coloctl pki issue --renew node "+c.Node)
	for i := range c.Peers {
		f.examinePeer(ctx, c, &c.Peers[i], creds)
	}
	f.examineArbiter(ctx, c, creds)
}

// examineAlone looks at what needs no other machine.
func (f *findings) examineAlone(ctx context.Context, c *config.Config) {
	*f = append(*f, c.Inspect()...)
	f.examineQEMU(ctx, c)
	f.device("tun", "/dev/net/tun", "modprobe tun; in a container pass the device in")
	f.space("space for state", c.StateDir)
	f.space("space for disks", c.StorageDir)
	f.space("space for overlays", c.RunDir)
	if len(c.Links) > 1 {
		f.multipath()
	}
	f.ports(ctx, c)
}

// examineQEMU starts the configured QEMU without a machine and asks what it can do.
func (f *findings) examineQEMU(ctx context.Context, c *config.Config) {
	const remedy = "install a QEMU built with replication and COLO, such as Debian's"
	if _, err := exec.LookPath(c.QEMU.Command[0]); err != nil {
		return // Inspect has said it
	}
	features, err := askQEMU(ctx, c.QEMU.Command)
	if err != nil {
		f.add("qemu starts", err, "", remedy)
		return
	}
	f.add("qemu starts", nil, features.Version.String(), "")
	f.add("qemu features", features.Require(qmp.ColoFeatures()...), "all that COLO needs", remedy)
	f.fit(c.QEMU.Command[0], features.Version, c.QEMU.Accel)
}

// fit judges a QEMU by its version, where what it says of itself is not enough.
func (f *findings) fit(program string, v qmp.Version, accel string) {
	err, remedy := colo.Fit(program, v, accel), ""
	if unfit := (*colo.UnfitError)(nil); errors.As(err, &unfit) {
		err, remedy = errors.New(unfit.Reason), unfit.Remedy
	}
	f.add("qemu version", err, v.String()+" is new enough for "+accel, remedy)
}

// askQEMU speaks QMP over a socket that QEMU inherits, so that nothing is left in the file system.
func askQEMU(ctx context.Context, argv []string) (*qmp.Features, error) {
	ctx, cancel := context.WithTimeout(ctx, doctorTimeout)
	defer cancel()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "qmp"), os.NewFile(uintptr(fds[1]), "qmp")
	conn, err := net.FileConn(ours)
	_ = ours.Close()
	if err != nil {
		_ = theirs.Close()
		return nil, err
	}
	args := append(slices.Clone(argv[1:]), "-M", "none", "-nodefaults", "-display", "none", "-S", "-chardev", "socket,id=q,fd=3", "-mon", "chardev=q,mode=control")
	cmd := exec.CommandContext(ctx, argv[0], args...)
	cmd.ExtraFiles = []*os.File{theirs}
	var said strings.Builder
	cmd.Stderr = &said
	err = cmd.Start()
	_ = theirs.Close()
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	defer func() {
		cancel() // kills it
		_ = cmd.Wait()
	}()
	client, err := qmp.NewClient(ctx, conn, &qmp.Options{Name: "doctor"})
	if err != nil {
		cancel()
		_ = cmd.Wait()
		return nil, fmt.Errorf("%s does not speak QMP: %w: %s", argv[0], err, strings.TrimSpace(said.String()))
	}
	defer client.Close()
	return qmp.Probe(ctx, client)
}

func (f *findings) device(rule, path, remedy string) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil {
		_ = file.Close()
	}
	f.add(rule, err, path, remedy)
}

func (f *findings) space(rule, folder string) {
	var st unix.Statfs_t
	if err := unix.Statfs(folder, &st); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return // that the folder is missing is another rule's, and the run folder is made by the daemon
		}
		f.add(rule, err, "", "look at the file system")
		return
	}
	free := int64(st.Bavail) * st.Bsize
	var err error
	if free < leastSpace {
		err = fmt.Errorf("%s left in %s", bytesText(free), folder)
	}
	f.add(rule, err, bytesText(free)+" left in "+folder, "make room: when it is full, no VM can be protected")
}

// multipath looks whether several links can be used as one.
func (f *findings) multipath() {
	text, err := os.ReadFile("/proc/sys/net/mptcp/enabled")
	if err == nil && strings.TrimSpace(string(text)) != "1" {
		err = errors.New("switched off")
	}
	f.add("mptcp", err, "replication can use all links", "sysctl -w net.mptcp.enabled=1; without it replication uses one link and does not survive its loss")
}

// ports looks whether others have the ports that the daemon needs. Where the daemon runs, it has them itself.
func (f *findings) ports(ctx context.Context, c *config.Config) {
	if conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", c.API.Socket); err == nil {
		_ = conn.Close()
		f.add("ports", nil, "in use by the daemon", "")
		return
	}
	var taken []string
	try := func(network, addr string) {
		var err error
		if network == "udp" {
			var p net.PacketConn
			if p, err = netns.ListenPacket(ctx, c.Netns, network, addr); err == nil {
				_ = p.Close()
			}
		} else {
			var l net.Listener
			if l, err = netns.Listen(ctx, c.Netns, network, addr); err == nil {
				_ = l.Close()
			}
		}
		if errors.Is(err, unix.EADDRINUSE) {
			taken = append(taken, addr+"/"+network)
		}
	}
	for _, l := range c.Links {
		try("udp", net.JoinHostPort(l.Address, strconv.Itoa(c.Heartbeat.Port)))
		for p := c.Ports.First; p <= min(c.Ports.Last, c.Ports.First+63); p++ { // the first VMs'
			try("tcp", net.JoinHostPort(l.Address, strconv.Itoa(p)))
		}
	}
	for _, a := range c.API.Listen {
		if host, _, err := net.SplitHostPort(a); err == nil && net.ParseIP(host) != nil {
			try("tcp", a)
		}
	}
	var err error
	if len(taken) > 0 {
		err = fmt.Errorf("in use by another program: %s", fit(strings.Join(taken, ", "), 200))
	}
	f.add("ports", err, "free", "end that program (ss -lptun says which it is), or configure other ports")
}

// examinePeer asks the other node's daemon, as this node would.
func (f *findings) examinePeer(ctx context.Context, c *config.Config, p *config.Peer, creds *pki.Credentials) {
	client, err := api.NewClient(api.ClientOptions{Node: p.Name, Addresses: p.API, Credentials: creds})
	if err != nil {
		f.add("peer "+p.Name, err, "", "correct its entry under peers")
		return
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, doctorTimeout)
	defer cancel()
	begun := time.Now()
	n, err := client.Node(ctx)
	took := time.Since(begun)
	f.add("peer "+p.Name, err, strings.Join(p.API, ", "), "start colod there; look at addresses, firewalls and certificates on both sides")
	if err != nil {
		return
	}
	f.clock("clock of "+p.Name, n.Now, begun, took)
	var differs error
	if n.Info.Accel != c.QEMU.Accel {
		differs = fmt.Errorf("%s there, %s here", n.Info.Accel, c.QEMU.Accel)
	}
	f.add("same accelerator", differs, n.Info.Accel, "configure the same on both nodes")
	for _, l := range p.Links {
		var wrong error
		have := ""
		for _, t := range n.Info.Links {
			if t.Name == l.Name {
				have = t.Address.String()
			}
		}
		if have != l.Address {
			wrong = fmt.Errorf("%s here, but %q in the configuration of %s", l.Address, have, p.Name)
		}
		f.add("link "+l.Name+" of "+p.Name, wrong, l.Address, "make both configurations say the same")
	}
}

// examineArbiter asks the arbiter as far as [config.Config.Inspect] has not: it runs the agents of fencing.
func (f *findings) examineArbiter(ctx context.Context, c *config.Config, creds *pki.Credentials) {
	ctx, cancel := context.WithTimeout(ctx, doctorTimeout)
	defer cancel()
	switch a := c.Arbiter; a.Kind {
	case config.ArbiterNone:
		f.add("arbiter", errors.New("none is configured: after a loss only proof or a person lets the other copy go on"), "",
			"run colod witness on a third machine, and name it in arbiter")
	case config.ArbiterWitness:
		for _, w := range a.Witnesses {
			f.examineWitness(ctx, c, w, creds)
		}
	case config.ArbiterEtcd:
		for _, e := range a.Etcd.Endpoints {
			conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", hostPort(e))
			if err == nil {
				_ = conn.Close()
			}
			f.add("etcd "+e, err, "reachable", "is etcd up there? look at address and firewalls")
		}
	}
}

// hostPort takes an endpoint's scheme away.
func hostPort(endpoint string) string {
	if _, rest, ok := strings.Cut(endpoint, "://"); ok {
		return rest
	}
	return endpoint
}

// examineWitness asks a witness, and looks whether it would die with a node.
func (f *findings) examineWitness(ctx context.Context, c *config.Config, w config.Witness, creds *pki.Credentials) {
	client, err := witness.NewClient(witness.ClientOptions{Name: w.Name, Address: w.Address, Credentials: creds, Host: c.HostID})
	if err != nil {
		f.add("witness "+w.Name, err, "", "correct arbiter.witnesses")
		return
	}
	defer client.Close()
	h, err := client.Health(ctx)
	remedy := "start colod witness there; look at address, firewalls and certificates"
	if errors.Is(err, witness.ErrSameHost) {
		remedy = "run the witness on a third machine: here it would die with the node"
	}
	f.add("witness "+w.Name, err, fmt.Sprintf("%s, version %s", w.Address, h.Version), remedy)
	if err == nil || !errors.Is(err, witness.ErrSameHost) {
		f.add("witness "+w.Name+" apart", memberAddress(c, w.Address), "not on a node's address", "run the witness on a third machine: there it would die with a node")
	}
}

// memberAddress returns an error if an address is one of the pair's.
func memberAddress(c *config.Config, addr string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil //nolint:nilerr // the configuration's rules have seen it
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return nil //nolint:nilerr // a name: the witness itself refuses a node on its host
	}
	for _, l := range c.Links {
		if l.Address == ip.String() {
			return fmt.Errorf("%s is this node's link %s", ip, l.Name)
		}
	}
	for _, p := range c.Peers {
		for _, l := range p.Links {
			if l.Address == ip.String() {
				return fmt.Errorf("%s is the link %s of %s", ip, l.Name, p.Name)
			}
		}
		for _, a := range p.API {
			if h, _, err := net.SplitHostPort(a); err == nil && h == ip.String() {
				return fmt.Errorf("%s is %s", ip, p.Name)
			}
		}
	}
	return nil
}
