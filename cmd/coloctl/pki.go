package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/coloctl/coloctl/colo/api/pki"
	"github.com/coloctl/coloctl/colo/config"
	"github.com/coloctl/coloctl/internal/lab"
)

func pkiCommand(r rules) *cli.Command {
	dir := func() cli.Flag {
		return &cli.StringFlag{Name: "dir", Usage: "`FOLDER` of the authority (default: pki in coloctl's configuration folder)", TakesFile: true}
	}
	authority := func() []cli.Flag {
		return []cli.Flag{dir(), &cli.StringFlag{Name: "name", Usage: "`NAME` shown in certificates", Value: "coloctl"},
			&cli.DurationFlag{Name: "life", Value: pki.DefaultAuthorityLife, Usage: "how long the authority lives"}}
	}
	var roles []string
	for _, role := range pki.Roles() {
		roles = append(roles, string(role))
	}
	return group(&cli.Command{Name: "pki", Usage: "the certificates with which nodes and operators know each other", Subcommands: []*cli.Command{
		r.leaf(&cli.Command{Name: "init", Usage: "make a certificate authority, best not on a node", Flags: authority(), Action: pkiInit}, operands{}),
		r.leaf(&cli.Command{Name: "issue", Usage: "make a key and its certificate (roles: " + strings.Join(roles, ", ") + ")", Flags: []cli.Flag{
			dir(),
			&cli.StringFlag{Name: "out", Usage: "`FOLDER` for NAME.pem and ca.crt (default: the authority's)", TakesFile: true},
			&cli.StringSliceFlag{Name: "host", Usage: "`NAME` or address of the host, for other tools; may be given more than once"},
			&cli.DurationFlag{Name: "life", Value: pki.DefaultLife, Usage: "how long the certificate lives"},
			&cli.BoolFlag{Name: "renew", Usage: "replace NAME.pem, with a new key"},
		}, Action: pkiIssue}, operands{min: 2, max: 2, usage: "ROLE NAME"}),
		r.leaf(&cli.Command{Name: "rotate", Usage: "make a new authority and keep the old one trusted until: coloctl pki retire", Flags: authority(),
			Action: pkiRotate}, operands{}),
		r.leaf(&cli.Command{Name: "retire", Usage: "end the trust in the authority before the last rotation", Flags: []cli.Flag{dir(),
			&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "don't ask for a confirmation"}}, Action: pkiRetire}, operands{}),
		r.leaf(&cli.Command{Name: "heartbeat-key", Usage: "make the key of the heartbeats, the same for both nodes, in a new file", Action: pkiHeartbeatKey},
			operands{min: 1, max: 1, usage: "FILE"}),
	}})
}

func pkiHeartbeatKey(cc *cli.Context) error {
	file, err := filepath.Abs(cc.Args().First())
	if err != nil {
		return err
	}
	if err := config.WriteKey(file); err != nil {
		return attempt(err, "make a key in "+file, "", nil)
	}
	if f := format(cc); f != lab.FormatTable {
		return lab.Encode(cc.App.Writer, f, map[string]string{"file": file})
	}
	fmt.Fprintln(cc.App.Writer, file)
	fmt.Fprintln(cc.App.ErrWriter, "next: copy it to both nodes, and name it as heartbeat.key-file in their configuration")
	return nil
}

// pkiResult is what the commands print.
type pkiResult struct {
	Folder   string `json:"folder"`
	Identity string `json:"identity,omitempty"`
	Trust    string `json:"trust"`
}

func tellPKI(cc *cli.Context, out pkiResult, next string) error {
	if f := format(cc); f != lab.FormatTable {
		return lab.Encode(cc.App.Writer, f, out)
	}
	for _, p := range []string{out.Identity, out.Trust} {
		if p != "" {
			fmt.Fprintln(cc.App.Writer, p)
		}
	}
	fmt.Fprintln(cc.App.ErrWriter, next)
	return nil
}

func pkiFolder(cc *cli.Context) (string, error) {
	if dir := cc.String("dir"); dir != "" {
		return filepath.Abs(dir)
	}
	base, err := configFolder()
	return filepath.Join(base, "pki"), err
}

// dirFlag is --dir as it was given, for the next command.
func dirFlag(cc *cli.Context) string {
	if dir := cc.String("dir"); dir != "" {
		return " --dir " + dir
	}
	return ""
}

func authorityOptions(cc *cli.Context) (dir string, o pki.AuthorityOptions, err error) {
	o = pki.AuthorityOptions{Name: cc.String("name"), Life: cc.Duration("life")}
	if o.Life < time.Hour {
		return "", o, usagef("--life %s: expected an hour or more", o.Life)
	}
	dir, err = pkiFolder(cc)
	return dir, o, err
}

func pkiInit(cc *cli.Context) error {
	dir, o, err := authorityOptions(cc)
	if err != nil {
		return err
	}
	if err := pki.InitCA(dir, o); err != nil {
		return attempt(err, "make an authority in "+dir, "", nil)
	}
	return tellPKI(cc, pkiResult{Folder: dir, Trust: filepath.Join(dir, pki.TrustFile)},
		fmt.Sprintf("next: coloctl pki issue%[1]s node NAME for each node, coloctl pki issue%[1]s admin NAME for yourself", dirFlag(cc)))
}

func pkiIssue(cc *cli.Context) error {
	dir, err := pkiFolder(cc)
	if err != nil {
		return err
	}
	o := pki.IssueOptions{Identity: pki.Identity{Role: pki.Role(cc.Args().Get(0)), Name: cc.Args().Get(1)}, Hosts: cc.StringSlice("host"),
		Life: cc.Duration("life"), Out: cc.String("out"), Renew: cc.Bool("renew")}
	if err := o.Validate(); err != nil {
		return &usageError{err}
	}
	if o.Life < time.Minute {
		return usagef("--life %s: expected a minute or more", o.Life)
	}
	path, err := pki.Issue(dir, o)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		e := &taskError{task: "issue a certificate for " + o.String(), err: err}
		if errors.Is(err, pki.ErrExists) {
			e.next = "to replace it, with a new key: --renew"
		}
		return e
	}
	trust := filepath.Join(filepath.Dir(path), pki.TrustFile)
	next := "next: bring both files to that host, and name them in its configuration"
	if o.Role.Person() {
		next = fmt.Sprintf("next: coloctl context add NAME --node NODE=HOST:PORT --node NODE=HOST:PORT --identity %s", path)
	}
	return tellPKI(cc, pkiResult{Folder: dir, Identity: path, Trust: trust}, next)
}

func pkiRotate(cc *cli.Context) error {
	dir, o, err := authorityOptions(cc)
	if err != nil {
		return err
	}
	if err := pki.Rotate(dir, o); err != nil {
		return attempt(err, "rotate the authority in "+dir, "", nil)
	}
	return tellPKI(cc, pkiResult{Folder: dir, Trust: filepath.Join(dir, pki.TrustFile)},
		"next: give ca.crt to everybody, then a new certificate (coloctl pki issue --renew"+dirFlag(cc)+"), then: coloctl pki retire"+dirFlag(cc)+", and ca.crt once more")
}

func pkiRetire(cc *cli.Context) error {
	dir, err := pkiFolder(cc)
	if err != nil {
		return err
	}
	if err := confirm(cc, "", "Who has no certificate of the new authority in %s, or no new ca.crt, is locked out. Go on?", dir); err != nil {
		return err
	}
	if err := pki.Retire(dir); err != nil {
		return attempt(err, "retire the old authority in "+dir, "", nil)
	}
	return tellPKI(cc, pkiResult{Folder: dir, Trust: filepath.Join(dir, pki.TrustFile)}, "next: give ca.crt to everybody")
}
