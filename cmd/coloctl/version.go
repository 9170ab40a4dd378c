package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/urfave/cli/v2"

	"github.com/coloctl/coloctl/internal/lab"
	"github.com/coloctl/coloctl/internal/version"
)

type versionInfo struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Go       string `json:"go"`
}

func ownVersion() versionInfo {
	v := versionInfo{Version: version.String(), Go: runtime.Version()}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				v.Revision = s.Value
			}
		}
	}
	return v
}

func versionCommand(r rules) *cli.Command {
	return r.leaf(&cli.Command{Name: "version", Usage: "print the version", Action: func(cc *cli.Context) error {
		v := ownVersion()
		if f := format(cc); f != lab.FormatTable {
			return lab.Encode(cc.App.Writer, f, v)
		}
		_, err := fmt.Fprintf(cc.App.Writer, "coloctl %s (%s)\n", v.Version, v.Go)
		return err
	}}, operands{})
}
