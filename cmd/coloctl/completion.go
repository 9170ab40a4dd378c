package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/coloctl/coloctl/colo/api"
	"github.com/coloctl/coloctl/internal/lab"
)

// completeFlag as the last argument asks for candidates instead of a command. What is typed is never run then.
const completeFlag = "--generate-bash-completion"

// completeTimeout is how long a shell waits for the names of VMs.
const completeTimeout = time.Second

// The last of the words that the shells pass is the one under the cursor, perhaps empty.
var completionScripts = map[string]string{
	"bash": `# bash completion for coloctl; load it with: source <(coloctl completion bash)
_coloctl() {
	local line
	COMPREPLY=()
	while IFS=$'\t' read -r line _; do
		COMPREPLY+=("$line")
	done < <("${COMP_WORDS[0]}" "${COMP_WORDS[@]:1:COMP_CWORD}" ` + completeFlag + ` 2>/dev/null)
}
complete -o default -F _coloctl coloctl
`,
	"zsh": `#compdef coloctl
# zsh completion for coloctl; load it with: source <(coloctl completion zsh)
_coloctl() {
	local -a found
	local value text
	while IFS=$'\t' read -r value text; do
		found+=("${value//:/\\:}${text:+:$text}")
	done < <("${words[1]}" "${(@)words[2,CURRENT]}" ` + completeFlag + ` 2>/dev/null)
	if (( $#found )); then
		_describe -V coloctl found
	else
		_files
	fi
}
compdef _coloctl coloctl
`,
	"fish": `# fish completion for coloctl; load it with: coloctl completion fish | source
function __coloctl
	set -l words (commandline -opc) (commandline -ct)
	command $words[1] $words[2..-1] ` + completeFlag + ` 2>/dev/null
end
complete -c coloctl -f -a '(__coloctl)'
complete -c coloctl -n '__fish_contains_opt -s f file; or __fish_contains_opt identity trust dir out socket' -F
`,
}

func completionCommand(r rules) *cli.Command {
	shells := []string{"bash", "fish", "zsh"}
	return r.leaf(&cli.Command{Name: "completion", Usage: "print what makes a shell complete this program's words: bash, fish or zsh", Action: func(cc *cli.Context) error {
		script, ok := completionScripts[cc.Args().First()]
		if !ok {
			return usagef("completion %q: expected %s", cc.Args().First(), strings.Join(shells, ", "))
		}
		if f := format(cc); f != lab.FormatTable {
			return lab.Encode(cc.App.Writer, f, map[string]string{"shell": cc.Args().First(), "script": script})
		}
		_, err := io.WriteString(cc.App.Writer, script)
		return err
	}}, operands{min: 1, max: 1, usage: "SHELL"})
}

// complete prints the candidates for the last of words, one a line, each with a tab and what it means where there is something to say.
func (r rules) complete(ctx context.Context, app *cli.App, words []string, w io.Writer) {
	last := ""
	if len(words) > 0 {
		last, words = words[len(words)-1], words[:len(words)-1]
	}
	offer := func(value, text string) {
		if strings.HasPrefix(value, last) {
			fmt.Fprintf(w, "%s\t%s\n", value, text)
		}
	}
	var command *cli.Command
	commands, place := app.Commands, 0
	for i := 0; i < len(words); i++ {
		word := words[i]
		if next := slices.IndexFunc(commands, func(c *cli.Command) bool { return c.HasName(word) }); next >= 0 && place == 0 {
			command = commands[next]
			commands = command.Subcommands
			continue
		}
		switch {
		case command == nil || word == "--":
			return
		case strings.HasPrefix(word, "-") && word != "-":
			if takesValue(command, word) {
				i++
				if i == len(words) { // the word under the cursor is the flag's value
					r.offerValue(ctx, words, word, offer)
					return
				}
			}
		default:
			place++
		}
	}
	if strings.HasPrefix(last, "-") && command != nil {
		for _, f := range command.Flags {
			text := ""
			if d, ok := f.(cli.DocGenerationFlag); ok {
				text = strings.ReplaceAll(d.GetUsage(), "`", "")
			}
			offer("--"+f.Names()[0], text)
		}
		offer("--help", "show help")
		return
	}
	for _, c := range commands {
		offer(c.Name, c.Usage)
	}
	if command != nil && len(command.Subcommands) == 0 {
		r.offerOperand(ctx, command, place, words, offer)
	}
}

// offerValue offers what a flag can be.
func (r rules) offerValue(_ context.Context, _ []string, flag string, offer func(value, text string)) {
	switch strings.TrimLeft(flag, "-") {
	case "o", "output":
		for _, f := range []lab.Format{lab.FormatTable, lab.FormatJSON, lab.FormatYAML} {
			offer(string(f), "")
		}
	case "mode":
		offer("bitmap", "only what changed")
		offer("full", "all")
	case "context":
		offerContexts(offer)
	}
}

func offerContexts(offer func(value, text string)) {
	f, err := readContexts()
	if err != nil {
		return
	}
	for _, c := range f.all() {
		offer(c.Name, c.where())
	}
}

// offerOperand offers what an operand can be.
func (r rules) offerOperand(ctx context.Context, c *cli.Command, place int, words []string, offer func(value, text string)) {
	kinds := strings.Fields(strings.Trim(r[c].usage, "[]"))
	if place >= len(kinds) {
		return
	}
	switch kinds[place] {
	case "CONTEXT":
		offerContexts(offer)
	case "SHELL":
		for shell := range completionScripts {
			offer(shell, "")
		}
	case "ROLE":
		for _, role := range []string{"node", "witness", "viewer", "operator", "admin"} {
			offer(role, "")
		}
	case "SCENARIO":
		for _, s := range lab.Scenarios {
			offer(s.Name, s.Summary)
		}
	case "VM", "NODE", "OPERATION":
		r.offerLive(ctx, kinds[place], words, offer)
	}
}

// offerLive asks the daemons for names. No answer in time offers nothing.
func (r rules) offerLive(ctx context.Context, kind string, words []string, offer func(value, text string)) {
	name := ""
	for i, w := range words {
		if w == "--context" && i+1 < len(words) {
			name = words[i+1]
		} else if v, ok := strings.CutPrefix(w, "--context="); ok {
			name = v
		}
	}
	if name == "" {
		name = firstSet(contextVariable)
	}
	c, err := chosenContext(name)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, completeTimeout)
	defer cancel()
	s, err := openSite(ctx, c, "")
	if err != nil {
		return
	}
	defer s.Close()
	found := make([]map[string]string, len(s.Nodes))
	s.Each(func(i int, t *target) error {
		found[i] = map[string]string{}
		switch kind {
		case "NODE":
			found[i][t.String()] = ""
		case "OPERATION":
			ops, err := t.Operations(ctx, "")
			for _, op := range ops {
				if op.State == api.Running {
					found[i][op.ID] = op.Kind + " " + op.VM
				}
			}
			return err
		default:
			n, err := t.Node(ctx)
			for _, vm := range n.VMs {
				found[i][vm] = ""
			}
			return err
		}
		return nil
	})
	seen := map[string]bool{}
	for _, f := range found {
		for value, text := range f {
			if !seen[value] {
				seen[value] = true
				offer(value, text)
			}
		}
	}
}
