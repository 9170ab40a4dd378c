package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
	"github.com/coloctl/coloctl/colo/api/pki"
	"github.com/coloctl/coloctl/colo/config"
	"github.com/coloctl/coloctl/internal/lab"
)

// nodeFile is where a node's configuration is unless --config says otherwise.
const nodeFile = "/etc/coloctl/colod.yaml"

// clockLimit is how far clocks may be apart before it is worth a word: certificates and histories are by the clock, nothing else is.
const clockLimit = 2 * time.Second

func doctorCommand(r rules) *cli.Command {
	return r.remote(&cli.Command{Name: "doctor", Usage: "look at everything that protection needs: on this host, if it is a node, and on the nodes of the context",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "config", Value: nodeFile, Usage: "`FILE` of this node's configuration", TakesFile: true},
			&cli.BoolFlag{Name: "failed", Usage: "print what is wrong only"},
			&cli.BoolFlag{Name: "prove", Usage: "run COLO on this host in a lab, with this host's QEMU, and measure it; takes about a minute, touches no VM"},
			&cli.BoolFlag{Name: "alone", Usage: "with --prove: try QEMU alone, without a guest, which takes some ten seconds"},
		}, Action: doctor}, operands{})
}

// findings are what a doctor found, in the order in which it looked.
type findings []config.Finding

func (f *findings) add(rule string, err error, good, remedy string) {
	if err != nil {
		*f = append(*f, config.Finding{Rule: rule, Text: err.Error(), Remedy: remedy})
		return
	}
	*f = append(*f, config.Finding{Rule: rule, OK: true, Text: good})
}

// errUnwell is returned when the doctor found something. It was printed.
var errUnwell = errors.New("not all is well")

func doctor(cc *cli.Context) error {
	if cc.Bool("prove") {
		return prove(cc)
	}
	var found findings
	file := cc.String("config")
	c, err := config.Load(file)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !cc.IsSet("config"): // not a node
	case err != nil:
		found.add("configuration", err, "", "correct the file")
		c = nil
	default:
		found.add("configuration", nil, file, "")
		found.examineHost(cc.Context, c)
	}
	if err := found.examineSite(cc, c); err != nil {
		return err
	}
	if err := cc.Err(); err != nil {
		return err
	}
	if err := printFindings(cc, found); err != nil {
		return err
	}
	bad := 0
	for _, i := range found {
		if !i.OK {
			bad++
		}
	}
	if bad > 0 {
		return &taskError{"doctor", fmt.Errorf("%w: %s of %d failed", errUnwell, plural(bad, "rule"), len(found)), "the remedies above"}
	}
	return nil
}

// examineSite asks the nodes of the context. A node's own host needs no context.
func (f *findings) examineSite(cc *cli.Context, node *config.Config) error {
	c, err := chosenContext(cc.String("context"))
	if err != nil {
		return err
	}
	if c.Name == localContext && node != nil {
		c.Socket = node.API.Socket
	}
	if _, err := os.Stat(c.Socket); c.Name == localContext && errors.Is(err, fs.ErrNotExist) && node == nil && cc.String("context") == "" {
		if len(*f) > 0 { // a node whose configuration says not even where its daemon is
			return nil
		}
		f.add("node", fmt.Errorf("neither a node's configuration (%s) nor a daemon (%s) is here", nodeFile, c.Socket), "",
			"run this on a node, or name the nodes: coloctl context add")
		return nil
	}
	if c.Identity != "" {
		creds, err := pki.Load(pki.Files{Identity: c.Identity, Trust: c.Trust})
		f.certificate("own certificate", creds, err, c.Identity, "issue one: coloctl pki issue ROLE NAME --renew")
		if err != nil {
			return nil
		}
	}
	s, err := openSite(cc.Context, c, cc.String("node"))
	if err != nil {
		return err
	}
	defer s.Close()
	each := make([]findings, len(s.Nodes))
	versions := make([]string, len(s.Nodes))
	s.Each(func(i int, t *target) error {
		versions[i] = each[i].examineNode(cc, t)
		return nil
	})
	for _, more := range each {
		*f = append(*f, more...)
	}
	f.sameVersions(s, versions)
	return nil
}

// examineNode asks one daemon how it is, and returns its version.
func (f *findings) examineNode(cc *cli.Context, t *target) string {
	begun := time.Now()
	n, err := t.Node(cc.Context)
	if err != nil {
		f.add("daemon of "+t.String(), err, "", "start colod there: systemctl start colod; see its log: journalctl -u colod")
		return ""
	}
	took := time.Since(begun)
	f.add("daemon of "+t.String(), nil, fmt.Sprintf("%s, up for %s", n.Version, short(time.Since(n.Begun))), "")
	f.clock("clock of "+t.String(), n.Now, begun, took)
	if n.Arbiter == "none" { // of one that there is its health tells
		f.add("arbiter of "+t.String(), errors.New("none: after a loss only proof or a person lets the other copy go on"), "", "configure a witness, etcd or a fence agent on both nodes")
	}
	for _, vm := range n.VMs {
		s, err := t.Status(cc.Context, vm, false)
		if err != nil {
			continue
		}
		if s.GivenUp != "" {
			f.add(vm+" on "+t.String(), errors.New(s.GivenUp), "", "see: coloctl history "+vm+"; when the cause is mended: coloctl protect "+vm)
		}
		if s.Replication == nil {
			continue
		}
		f.add("replication of "+vm+" on "+t.String(), reachable(s.Replication), replicationText(s.Replication),
			"take replication: {encryption: off} out of both nodes' files, and protect the VM anew: coloctl unprotect, coloctl protect")
	}
	h, err := t.Health(cc.Context)
	if err != nil {
		f.add("health of "+t.String(), err, "", "see the daemon's log: journalctl -u colod")
		return n.Version
	}
	for _, i := range h.Items {
		var bad error
		if !i.OK {
			bad = errors.New(i.Text)
		}
		f.add(t.String()+": "+i.Name, bad, i.Text, healthRemedy(i))
	}
	return n.Version
}

// reachable says which sockets of a VM's replication a stranger could use.
func reachable(r *colo.Replication) error {
	var open []string
	for _, addr := range r.Listens {
		if a, err := netip.ParseAddrPort(addr); err != nil || !r.Encrypted || a.Addr().IsUnspecified() {
			open = append(open, addr)
		}
	}
	switch {
	case len(open) > 0 && r.Encrypted:
		return fmt.Errorf("QEMU listens on every address of the host: %s", strings.Join(open, ", "))
	case len(open) > 0:
		return fmt.Errorf("not encrypted: whoever reaches %s can read and write the VM's disks and packets", strings.Join(open, ", "))
	case !r.Encrypted:
		return fmt.Errorf("not encrypted: whoever sees what goes by %s can read and change it", strings.Join(r.Links, " and "))
	}
	return nil
}

func healthRemedy(i api.HealthItem) string {
	switch {
	case i.Name == "state":
		return "see the daemon's log; the file has backups beside it"
	case strings.Contains(i.Text, "another key"):
		return "copy the heartbeats' key of one node to the other"
	case strings.HasPrefix(i.Name, "version of"):
		return "finish the upgrade: one version at a time, both nodes before the next one"
	case strings.HasPrefix(i.Name, "link"):
		return "look at this link's cable, interface and addresses, and at firewalls: heartbeats are UDP"
	case strings.HasPrefix(i.Name, "distance"):
		return "connect the hosts by a nearer link, or raise replication: {max-link-rtt} in the node's file if the guests' users can bear that"
	case i.Name == "certificate" || strings.Contains(i.Text, "certificate"):
		return "issue a new one: coloctl pki issue node NAME --renew; both nodes need the same authority"
	case i.Name == "arbiter":
		return "look at the arbiter's host, and at the network to it from this node"
	case strings.Contains(i.Text, "forbidden") || strings.Contains(i.Text, "arbiter"):
		return "correct this node's or the other one's configuration, as it says"
	case i.Text == "no peer is configured":
		return "name the other node under peers in this node's configuration"
	}
	return "is the other host up? look at all links"
}

// clock compares another machine's time with ours, as of the middle of the question.
func (f *findings) clock(rule string, theirs, asked time.Time, took time.Duration) {
	apart := theirs.Sub(asked.Add(took / 2)).Abs()
	var err error
	if apart > clockLimit+took/2 {
		err = fmt.Errorf("%s apart from this machine's", short(apart))
	}
	good := "as here"
	if apart > took {
		good = short(apart) + " apart"
	}
	f.add(rule, err, good, "run an NTP client on all machines")
}

// certificate looks whether a certificate can be used, also in a month.
func (f *findings) certificate(rule string, creds *pki.Credentials, err error, file, remedy string) {
	good := file
	if err == nil {
		err = creds.Err()
	}
	if err == nil {
		if soon := config.ExpiryWarning(creds); soon != "" {
			err = errors.New(soon)
		}
		good = fmt.Sprintf("%s, until %s", creds.Identity(), creds.NotAfter().Format(time.DateOnly))
	}
	f.add(rule, err, good, remedy)
}

func (f *findings) sameVersions(s *site, versions []string) {
	for i := 1; i < len(versions); i++ {
		if versions[0] == "" || versions[i] == "" {
			continue
		}
		var err error
		if versions[i] != versions[0] {
			err = fmt.Errorf("%s has %s, %s has %s", s.Nodes[0], versions[0], s.Nodes[i], versions[i])
		}
		f.add("same version", err, versions[0], "finish the upgrade")
	}
}

func printFindings(cc *cli.Context, found findings) error {
	if cc.Bool("failed") {
		var bad findings
		for _, i := range found {
			if !i.OK {
				bad = append(bad, i)
			}
		}
		found = bad
	}
	if f := format(cc); f != lab.FormatTable {
		if found == nil {
			found = findings{}
		}
		return lab.Encode(cc.App.Writer, f, found)
	}
	for _, i := range found {
		mark := "ok  "
		if !i.OK {
			mark = "FAIL"
		}
		printFinding(cc.App.Writer, 22, mark, i)
	}
	return nil
}

func printFinding(w io.Writer, width int, mark string, i config.Finding) {
	terminal, column := widthOf(w), 6+width+1
	fmt.Fprintln(w, hang(fmt.Sprintf("%s  %-*s %s", mark, width, i.Rule, strings.Join(strings.Fields(i.Text), " ")), column, terminal))
	if !i.OK && i.Remedy != "" {
		fmt.Fprintln(w, hang(fmt.Sprintf("%*s-> %s", column, "", i.Remedy), column+3, terminal))
	}
}
