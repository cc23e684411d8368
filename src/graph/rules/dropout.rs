//! Dropout between a layer and its ReLU. (Dropout that is off is dropped while
//! the records are read: it returns its very input.)

use super::{Found, Rule};
use crate::graph::language::{Op, Recipe};

pub(super) const RELU_PAST_DROPOUT: Rule = Rule {
    name: "relu_past_dropout",
    sketch: "dropout multiplies by 0 or by 1/(1-p) > 0, or does nothing: relu commutes with it, \
             for finite values bit by bit, as long as the same draw is made once",
    guards: &["one user"],
    find: |site, found| {
        if site.term.op != Op::Relu || !site.data(site.arg(0)).absorbs_relu {
            return;
        }
        for dropout in site.native(site.arg(0), "aten::dropout") {
            // A second reader would need the draw before ReLU as well.
            let users = site.context.imported.uses_of(site.arg(0));
            if !site.guard("one user", users <= 1, || "the dropout has another reader".into()) {
                continue;
            }
            let mut recipe = Recipe::default();
            let inner = recipe.add(Op::Relu, [dropout.args[0].into()]);
            let rest = dropout.args[1..].iter().map(|id| (*id).into());
            recipe.add(dropout.op.clone(), std::iter::once(inner).chain(rest));
            found.push(Found::Terms(recipe));
        }
    },
};
